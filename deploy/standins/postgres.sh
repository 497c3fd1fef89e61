#!/bin/bash
# The entry point of the stand-in for the public postgres image: what docker-compose.yml and the
# Kubernetes manifests use of the public one, and no more. Runs as the account postgres.
set -euo pipefail

if [ "${1-}" != postgres ]; then
    exec "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    password=${POSTGRES_PASSWORD-}
    if [ -n "${POSTGRES_PASSWORD_FILE-}" ]; then
        password=$(< "$POSTGRES_PASSWORD_FILE")
    fi
    if [ -z "$password" ]; then
        echo "give a password: POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD" >&2
        exit 1
    fi
    user=${POSTGRES_USER:-postgres} database=${POSTGRES_DB:-${POSTGRES_USER:-postgres}}
    # Half a database would look like a whole one the next time.
    trap 'find "$PGDATA" -mindepth 1 -delete' EXIT
    # Words, as the public image takes them.
    # shellcheck disable=SC2086
    initdb --username="$user" --pwfile=<(printf '%s\n' "$password") --auth-local=trust \
        --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS-}
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    if [ "$database" != postgres ]; then
        pg_ctl --options="-c listen_addresses=''" --wait start
        psql --username="$user" --dbname=postgres --no-psqlrc --quiet \
            --set=ON_ERROR_STOP=1 --set=name="$database" <<< 'create database :"name"'
        pg_ctl --mode=fast --wait stop
    fi
    trap - EXIT
fi
exec "$@" -c listen_addresses='*'
