#!/bin/sh
# A plugin whose process outlives `Shutdown` and ignores SIGTERM, and so do its children:
# stubborn.sh PLUGIN
trap '' TERM INT HUP
"$1"
while :; do sleep 1000; done
