#!/bin/sh
# It says why on standard error and ends before its first line.
echo 'the licence is missing' >&2
exit 3
