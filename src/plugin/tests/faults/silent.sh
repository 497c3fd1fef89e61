#!/bin/sh
# It prints nothing and stays.
exec sleep 1000
