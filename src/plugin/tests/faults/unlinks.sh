#!/bin/sh
# A plugin whose socket is gone before the host knows its address: unlinks.sh PLUGIN
"$1" | {
    read -r line
    rm -f "$(printf '%s' "$line" | cut -d '|' -f 4)"
    printf '%s\n' "$line"
    cat > /dev/null
}
