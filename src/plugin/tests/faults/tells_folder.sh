#!/bin/sh
# It says on standard error where its folder is, starts a process in a session of its own, and
# prints no first line.
echo "folder $TMPDIR" >&2
setsid sleep 1000 &
exec sleep 1000
