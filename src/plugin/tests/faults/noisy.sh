#!/bin/sh
# It writes what log readers have fallen over, and then is an ordinary plugin: noisy.sh PLUGIN
{
    head -c 70000 /dev/zero | tr '\000' b
    echo
    echo '{"@message": 5}'
    echo '{"@message": null, "@level": [], "@timestamp": {}, "@module": false}'
    echo '{"@level": "shout", "@message": "unknown level"}'
    echo '{"@message": "cut off'
    echo '{}'
    echo '[1, 2]'
    # Nested deeper than a recursive reader has stack, and more fields than anybody reads.
    awk 'BEGIN {
        printf "{\"@message\": \"deep\", \"a\": "; for (i = 0; i < 30000; i++) printf "["; print ""
        printf "{\"@message\": \"wide\""; for (i = 0; i < 4000; i++) printf ", \"k%d\": %d", i, i; print "}"
    }'
    # No text at all: a line as long as may be, and several encodings.
    head -c 65536 /dev/zero | tr '\000' '\377'
    echo
    printf '\377\376\000\300\200\n\r\n\n'
    echo '[WARN] a prefix'
    echo 'the noise is over'
} >&2
exec "$1"
