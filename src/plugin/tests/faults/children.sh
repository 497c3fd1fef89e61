#!/bin/sh
# A plugin that leaves processes behind: in its group, in sessions of their own, and orphans. Each
# keeps the plugin's standard output and error open: children.sh PLUGIN
sleep 1000 &
setsid sleep 1000 &
setsid sh -c 'sleep 1000 & setsid sleep 1000 & exit' &
(setsid sh -c 'trap "" TERM HUP; while :; do sleep 1000; done' &)
exec "$1"
