#!/bin/sh
# Builds the plugin, and on demand tests it: build.sh [test]
#
# With Go's modules, which are fetched once and noted in go.sum. Or, where there is no go.sum, with Debian's
# packages golang-go, golang-github-hashicorp-go-plugin-dev and golang-google-grpc-dev, and then nothing
# is fetched. Status 3: neither can be had.
set -eu
cd "$(dirname "$0")"
debian=/usr/share/gocode
command -v go > /dev/null || { echo "there is no go: install Go 1.19 or later" >&2; exit 3; }
if [ -f go.sum ]; then
    export GO111MODULE=on
elif [ -d "$debian/src/github.com/hashicorp/go-plugin" ] && [ -d "$debian/src/google.golang.org/grpc" ]; then
    mkdir -p build/gopath/src
    ln -sfn ../../../flexcoreplugin build/gopath/src/flexcoreplugin
    export GO111MODULE=off GOFLAGS= GOPATH="$PWD/build/gopath:$debian"
else
    export GO111MODULE=on
    go mod tidy || { echo "neither Go's modules nor Debian's packages can be had" >&2; exit 3; }
fi
# One file that needs no library of the machine it runs on.
export CGO_ENABLED=0
go build -trimpath -o build/greeter .
if [ "${1:-}" = test ]; then
    PLUGIN="$PWD/build/greeter" go test -count=1 .
fi
