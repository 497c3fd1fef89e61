#!/usr/bin/env python3
"""Writes flexcore_plugin/_descriptors.py, the contract's messages, with the compiler `protoc`.

With the argument --check it writes nothing: exit status 1 if the file says something else.
"""

import base64
import pathlib
import subprocess
import sys
import tempfile
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
SCHEMAS = HERE.parents[2] / "schemas" / "proto"
FILES = [(HERE, "go_plugin.proto"), (SCHEMAS, "flexcore/plugin/v1/plugin.proto")]
TARGET = HERE / "flexcore_plugin" / "_descriptors.py"
HEAD = '"""Descriptors of the contract\'s messages. Written by make_messages.py; do not edit."""\n'


def descriptors(folder, file):
    with tempfile.TemporaryDirectory() as place:
        target = pathlib.Path(place) / "set"
        subprocess.run(
            ["protoc", f"--proto_path={folder}", f"--descriptor_set_out={target}", file], check=True
        )
        return target.read_bytes()


def main():
    lines = [HEAD, "SETS = ("]
    for folder, file in FILES:
        text = base64.b64encode(descriptors(folder, file)).decode()
        lines.append(f"    # {file}")
        # Implicitly joined, with a comma behind the last one.
        pieces = [f'    "{piece}"' for piece in textwrap.wrap(text, 88)]
        lines.append("\n".join(pieces) + ",")
    lines.append(")\n")
    made = "\n".join(lines)
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text() != made:
            sys.exit(f"{TARGET.name} is not what the .proto files say: run make_messages.py")
        return
    TARGET.write_text(made)


if __name__ == "__main__":
    main()
