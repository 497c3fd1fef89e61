#!/usr/bin/env bash
# Makes what docker-compose.yml needs to be kept secret, in deploy/secrets/ (or the folder given).
# What is there stays as it is, so it may be run again at any time. Needs openssl.
set -euo pipefail

folder=${1:-$(dirname "$0")/secrets}
command -v openssl > /dev/null || {
    echo "$0: no openssl: install it" >&2
    exit 1
}
# The folder keeps others on this machine out; containers, under their own accounts, get each file
# by itself, and have to be able to read it.
mkdir -p "$folder"
chmod 700 "$folder"
umask 022

# keep NAME COMMAND…: what the command prints, unless the file is there.
keep() {
    local file="$folder/$1"
    shift
    if [ ! -s "$file" ]; then
        "$@" > "$file.unfinished"
        mv "$file.unfinished" "$file"
        echo "made $file"
    fi
}

keep signing_key.pem openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:3072
keep verify_key.pem openssl pkey -in "$folder/signing_key.pem" -pubout
keep postgres_password openssl rand -hex 24
keep postgres_url printf 'postgres://flexcore:%s@postgres:5432/flexcore\n' \
    "$(cat "$folder/postgres_password")"
keep secrets_key openssl rand -hex 32
