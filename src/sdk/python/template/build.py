#!/usr/bin/env python3
"""Makes the plugin's one file, greeter.pyz, which Python runs as it is.

    python3 build.py                    your code and flexcore_plugin; a worker has to have requirements.txt
    python3 build.py --packages         with the packages of requirements.txt, which pip fetches
    python3 build.py --packages FOLDER  with the packages in this folder

With packages the file fits this version of Python on this sort of machine alone. At each start it unpacks them into
a folder that the host removes: they are libraries, which cannot be loaded from an archive.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipapp

HERE = pathlib.Path(__file__).resolve().parent
TARGET = HERE / "greeter.pyz"
# What is no part of the plugin, beside packages and hidden files.
OTHERS = {"build.py", "requirements.txt", "plugin.yaml", "README.md", "__pycache__"}

MAIN = '''\
import os, sys, sysconfig, zipfile
TAG = {tag!r}
if TAG:
    tag = [sys.implementation.cache_tag, sysconfig.get_platform()]
    if tag != TAG:
        sys.exit(f"it was built for {{TAG}}, and this is {{tag}}: build it with this Python, or without --packages")
    folder = os.environ.get("PLUGIN_UNIX_SOCKET_DIR")
    if not folder:
        sys.exit("This is a plugin of FlexCore: it is started by its host. Try: flexcore plugin check FOLDER")
    with zipfile.ZipFile(os.path.dirname(__file__)) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("packages/")])
    sys.path.insert(1, os.path.join(folder, "packages"))
try:
    from flexcore_plugin import run
except ModuleNotFoundError as error:
    sys.exit(
        f"{{error}}: {{sys.executable}} lacks a package of requirements.txt. Build the file with `python3 build.py "
        "--packages`, or have `environment` in plugin.yaml say on which PATH a python3 is that has them"
    )
from functions import plugin
run(plugin)
'''


def main(arguments):
    with_packages = arguments[:1] == ["--packages"]
    if arguments and (not with_packages or len(arguments) > 2):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        copy_code(place)
        if with_packages:
            add_packages(place / "packages", arguments[1:])
        tag = [sys.implementation.cache_tag, sysconfig.get_platform()] if with_packages else None
        (place / "__main__.py").write_text(MAIN.format(tag=tag))
        # Under another name until it is whole: FlexCore may be watching the folder.
        part = TARGET.with_suffix(".part")
        zipapp.create_archive(place, part, interpreter="/usr/bin/env python3", compressed=True)
        os.replace(part, TARGET)
    print(f"{TARGET.name}: {TARGET.stat().st_size // 1024} KiB")


def copy_code(place):
    for entry in sorted(HERE.iterdir()):
        if entry.name in OTHERS or entry.name.startswith((".", "test_")) or entry.suffix in (".pyz", ".part"):
            continue
        if entry.is_dir():
            shutil.copytree(entry, place / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, place)


def add_packages(target, given):
    if given:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "bin")
        shutil.copytree(given[0], target, ignore=ignored)
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary", ":all:", "--no-compile", "--target", str(target)]
    subprocess.run([*pip, "--requirement", str(HERE / "requirements.txt")], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
