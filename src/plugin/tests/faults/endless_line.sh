#!/bin/sh
# Its first line has half a gigabyte and no end: more than a host may ever take.
head -c 536870912 /dev/zero | tr '\000' a
exec sleep 1000
