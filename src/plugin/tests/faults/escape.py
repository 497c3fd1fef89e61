#!/usr/bin/env python3
"""It tries what a sandbox keeps a plugin from, says on standard error how that went, and ends before
its first line: escape.py WHAT…, each as NAME or NAME=ARGUMENT"""

import ctypes
import os
import signal
import socket
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
CLONE_NEWNS = 0x20000
# More than any test allows, and few enough for a machine where nothing holds.
FORKS_MAX = 500
MIB_MAX = 2048


def called(result):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read(path):
    with open(path, "rb") as file:
        file.read(16)


def write(path):
    with open(path, "w") as file:
        file.write("x")


def dial(port):
    socket.create_connection(("127.0.0.1", int(port)), timeout=2).close()


def trace(pid):
    # It does not stop the process, and ends with this one.
    called(LIBC.ptrace(PTRACE_SEIZE, int(pid), None, None))


def see(pid):
    os.stat(f"/proc/{pid}/stat")


def signal_guard(_):
    # From inside of a namespace the first process takes none: what comes next is still printed.
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.2)


def forks(_):
    for number in range(FORKS_MAX):
        try:
            if os.fork() == 0:
                time.sleep(1000)
        except OSError as error:
            raise OSError(error.errno, f"after {number}: {error.strerror}") from None


def bomb(_):
    if os.fork() != 0:
        # By then there is no room for more.
        time.sleep(0.5)
        return
    while True:
        try:
            # Each leaves its session, starts two, and ends.
            if os.getsid(0) != os.getpid():
                os.setsid()
            if os.fork() == 0 or os.fork() == 0:
                continue
            os._exit(0)
        except OSError:
            time.sleep(0.001)


def memory(_):
    kept = []
    try:
        for _ in range(MIB_MAX):
            # Every page is written.
            kept.append(bytearray(b"x") * (1 << 20))
    except MemoryError:
        size = len(kept)
        kept.clear()
        raise OSError(12, f"after {size} MiB") from None


ATTEMPTS = {
    "shadow": lambda _: read("/etc/shadow"),
    "environment": lambda pid: read(f"/proc/{pid}/environ"),
    "own": lambda _: write("own"),
    "outside": write,
    "port": dial,
    "signal": lambda pid: os.kill(int(pid), 0),
    "trace": trace,
    "see": see,
    "mounts": lambda _: called(LIBC.unshare(CLONE_NEWNS)),
    "user": lambda _: os.setuid(0),
    "guard": signal_guard,
    "forks": forks,
    "bomb": bomb,
    "memory": memory,
}


def main():
    for word in sys.argv[1:]:
        name, _, argument = word.partition("=")
        try:
            ATTEMPTS[name](argument)
            outcome = "done"
        except OSError as error:
            outcome = f"refused: {error.strerror}"
        print(f"{name} {outcome}", file=sys.stderr, flush=True)
    sys.exit(3)


if __name__ == "__main__":
    main()
