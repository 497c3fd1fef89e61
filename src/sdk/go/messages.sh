#!/bin/sh
# Makes the messages of the contract anew: messages.sh [FOLDER]
#
# They are written to FOLDER, which is flexcoreplugin/pluginv1 unless said otherwise. It takes Debian's
# packages protobuf-compiler and protoc-gen-go-1-3. What that generator writes works with its own library
# and with later ones. Status 3: one of them is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for needed in protoc protoc-gen-go; do
    command -v "$needed" > /dev/null || { echo "there is no $needed" >&2; exit 3; }
done
to=${1:-"$here/flexcoreplugin/pluginv1"}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
protoc --proto_path="$here/../../../schemas/proto" \
    --go_out=plugins=grpc,paths=source_relative:"$made" flexcore/plugin/v1/plugin.proto
mkdir -p "$to"
cp "$made/flexcore/plugin/v1/plugin.pb.go" "$to"
