#!/usr/bin/env bash
# Replaces the containers of services one after another, each by one of the present image and
# settings, and goes on only when the new one is healthy: for restarts and for updates.
#
#   deploy/rolling-restart.sh gateway worker
#   deploy/rolling-restart.sh nats-1 nats-2 nats-3
#
# COMPOSE is the command, with its options [default: docker compose, else docker-compose].
set -euo pipefail
cd "$(dirname "$0")/.."

# As long as the longest stop_grace_period in docker-compose.yml; longer than a server takes to catch up.
stop_seconds=60 healthy_seconds=180

if [ $# = 0 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
if [ -z "${COMPOSE-}" ]; then
    COMPOSE=docker-compose
    ! docker compose version > /dev/null 2>&1 || COMPOSE="docker compose"
fi
# Words: a command and its options.
# shellcheck disable=SC2206
compose=($COMPOSE)

until_healthy() {
    local id status start=$SECONDS
    for id in $("${compose[@]}" ps -q "$1"); do
        while
            status=$(docker inspect --format '{{.State.Health.Status}}' "$id")
            [ "$status" != healthy ]
        do
            if [ $((SECONDS - start)) -gt $healthy_seconds ]; then
                echo "$0: $1 ($id) is $status; the others were left as they are" >&2
                exit 1
            fi
            sleep 0.5
        done
    done
}

for service in "$@"; do
    # Newlines between ids.
    mapfile -t old < <("${compose[@]}" ps -q "$service")
    for id in "${old[@]}"; do
        until_healthy "$service"
        docker stop --time $stop_seconds "$id" > /dev/null
        docker rm "$id" > /dev/null
        "${compose[@]}" up --detach --no-deps --no-recreate \
            --scale "$service=${#old[@]}" "$service" > /dev/null 2>&1
        until_healthy "$service"
        echo "$service: ${id:0:12} replaced"
    done
done
