#!/bin/sh
# Builds the Go plugin and the Go host of the tests: build.sh FOLDER
#
# Both lie in FOLDER then. It takes Debian's packages golang-go, golang-github-hashicorp-go-plugin-dev,
# golang-google-grpc-dev, protobuf-compiler and protoc-gen-go-1-3, and nothing from the network. Status
# 3: one of them is missing.
set -eu
sources=$(cd "$(dirname "$0")" && pwd)
libraries=/usr/share/gocode
for needed in "$libraries/src/github.com/hashicorp/go-plugin" "$libraries/src/google.golang.org/grpc"; do
    [ -d "$needed" ] || { echo "there is no $needed" >&2; exit 3; }
done
for needed in go protoc protoc-gen-go; do
    command -v "$needed" > /dev/null || { echo "there is no $needed" >&2; exit 3; }
done
mkdir -p "$1"
out=$(cd "$1" && pwd)
own=$out/gopath/src/flexlab
mkdir -p "$own/lab"
cp -R "$sources/shared" "$sources/plugin" "$sources/host" "$own"
protoc --proto_path="$sources/.." --go_out=plugins=grpc,paths=source_relative:"$own/lab" lab.proto
export GO111MODULE=off GOPATH="$out/gopath:$libraries" GOCACHE="$out/gocache" GOFLAGS=
(cd "$own" && go build -o "$out/plugin" ./plugin && go build -o "$out/host" ./host)
rm -rf "$out/gopath" "$out/gocache"
