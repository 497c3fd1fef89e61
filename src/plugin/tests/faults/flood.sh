#!/bin/sh
# A plugin, and behind its first line more bytes on standard output than fit in memory's bound:
# flood.sh PLUGIN BYTES
"$1" | {
    read -r line
    printf '%s\n' "$line"
    yes 'this line is printed again and again, and nobody has asked for it' | head -c "$2"
    cat > /dev/null
}
