#!/bin/sh
# Fetches grpcio and writes the messages' code for the Python plugin of the tests: build.sh FOLDER
#
# FOLDER is one for PYTHONPATH then. It takes python3 with pip; wheels alone, so no compiler. Status 3:
# this machine cannot have them.
set -eu
sources=$(cd "$(dirname "$0")" && pwd)
python3 -m pip --version > /dev/null || { echo "there is no pip" >&2; exit 3; }
python3 -m pip install --quiet --no-input --disable-pip-version-check --no-warn-conflicts \
    --root-user-action ignore --only-binary :all: --no-compile \
    --target "$1" --requirement "$sources/requirements.txt" || exit 3
export PYTHONPATH="$1"
for proto in "$sources/../lab.proto" "$sources/go_plugin.proto"; do
    python3 -m grpc_tools.protoc --proto_path="$(dirname "$proto")" \
        --python_out="$1" --grpc_python_out="$1" "$(basename "$proto")"
done
