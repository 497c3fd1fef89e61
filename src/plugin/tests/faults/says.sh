#!/bin/sh
# It prints its first argument as its first line, and stays, or ends with a status after words on
# standard error: says.sh LINE [STATUS]
#
# A backslash and digits are a byte in octal.
printf '%b\n' "$1"
[ -z "$2" ] && exec sleep 1000
echo 'the disk is full' >&2
exit "$2"
