#!/usr/bin/env bash
# Compiles a static executable and makes the image of it: deploy/image.sh [TAG]
#
#   deploy/image.sh                    flexcore:local, which docker-compose.yml uses
#   deploy/image.sh --executable       only target/image/flexcore, for `docker compose build`
#
# The first time takes as long as any release build. Needs cargo, and Docker for the image.
set -euo pipefail
cd "$(dirname "$0")/.."

# A static C library; it resolves names from /etc/hosts and DNS by itself. Naming the target keeps
# the flag away from build scripts and macros, which cannot be static.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --bin flexcore --target "$target"

# Without symbols it is a quarter of the size; target/ keeps those, for a trace to be read with.
mkdir -p target/image
strip -o target/image/flexcore.unfinished "target/$target/release/flexcore"
chmod 755 target/image/flexcore.unfinished
mv target/image/flexcore.unfinished target/image/flexcore
if file -L target/image/flexcore 2> /dev/null | grep -q 'dynamically linked'; then
    echo "$0: target/image/flexcore is not static" >&2
    exit 1
fi
[ "${1-}" = --executable ] && exit

tag=${1:-flexcore:local}
docker build --quiet --file deploy/Dockerfile --tag "$tag" . > /dev/null
docker image inspect --format '{{index .RepoTags 0}}: {{.Size}} bytes' "$tag"
