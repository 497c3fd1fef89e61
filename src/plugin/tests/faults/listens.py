#!/usr/bin/env python3
"""A plugin with a first line as it should be, and a socket behind it that does something else:
listens.py WHAT"""

import os
import socket
import struct
import sys
import threading
import time

HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, UNKNOWN = 1, 4, 6, 7, 8, 200


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# What is sent without end once the connection's HTTP/2 has begun.
ENDLESS = {
    "endless_pings": frame(PING, bytes(8)),
    "endless_settings": frame(SETTINGS),
    "endless_unknown": frame(UNKNOWN, bytes(16_000)),
    "endless_window_updates": frame(WINDOW_UPDATE, struct.pack(">I", 0), stream=1),
    # A header block that never ends: CONTINUATION after CONTINUATION.
    "endless_headers": frame(9, b"\x00\x01a\x01b" * 3_000, stream=1),
}


def flood(connection, what):
    first = frame(SETTINGS)
    if what == "endless_headers":
        first += frame(1, b"\x88", stream=1)
    connection.sendall(first)
    chunk = ENDLESS[what] * max(1, 65_536 // len(ENDLESS[what]))
    threading.Thread(target=swallow, args=(connection,), daemon=True).start()
    while True:
        connection.sendall(chunk)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Of whatever is called it says that there is no such method.
UNIMPLEMENTED = b"\x88" + b"".join(
    b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
    for name, value in [(b"content-type", b"application/grpc"), (b"grpc-status", b"12")]
)


def answer(connection, calls):
    """Answers so many calls."""
    connection.sendall(frame(SETTINGS) + frame(SETTINGS, flags=1))
    stream = connection.makefile("rb")
    stream.read(len(PREFACE))
    while calls > 0:
        head = stream.read(9)
        if len(head) < 9:
            return
        stream.read(int.from_bytes(head[:3], "big"))
        if head[3] == HEADERS:
            number = int.from_bytes(head[5:], "big")
            connection.sendall(frame(HEADERS, UNIMPLEMENTED, flags=5, stream=number))
            calls -= 1


def swallow(connection):
    try:
        while connection.recv(65_536):
            pass
    except OSError:
        pass


def serve(connection, what):
    try:
        if what == "closes":
            connection.close()
        elif what == "mute":
            swallow(connection)
        elif what == "garbage":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(range(256)) * 64)
            swallow(connection)
        elif what == "begins":
            # HTTP/2 as it should be; then no call is ever answered.
            connection.sendall(frame(SETTINGS) + frame(SETTINGS, flags=1))
            swallow(connection)
        elif what == "leaves":
            connection.sendall(frame(SETTINGS) + frame(GOAWAY, bytes(8)))
            swallow(connection)
        elif what == "deaf":
            # The calls of the broker, of the printed output, and for the plugin's health.
            answer(connection, 3)
            while True:
                connection.sendall(ENDLESS["endless_pings"] * 1_000)
        else:
            flood(connection, what)
    except OSError:
        pass


def main():
    what = sys.argv[1]
    address = os.path.join(os.environ.get("PLUGIN_UNIX_SOCKET_DIR", "."), "fault")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(8)
    print(f"1|1|unix|{address}|grpc|", flush=True)
    if what == "never_accepts":
        time.sleep(1000)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, what), daemon=True).start()


if __name__ == "__main__":
    main()
