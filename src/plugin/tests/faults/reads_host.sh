#!/bin/sh
# It tries to open what its guard and its host keep for themselves, says on standard error how that
# went, and ends before its first line.
host=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$PPID/status")

try() {
    if (: <"/proc/$2/$3") 2>/dev/null; then how=open; else how=closed; fi
    echo "$1 $3 $how" >&2
}

try own "$$" environ
for file in environ mem maps fd/0; do
    try guard "$PPID" "$file"
    try host "$host" "$file"
done
exit 3
