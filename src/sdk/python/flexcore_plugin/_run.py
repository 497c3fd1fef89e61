"""Being a plugin's process: go-plugin's handshake, and the server."""

import concurrent.futures
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading

import grpc

from . import _contract, _limits, _logs
from ._go_plugin import GoPlugin, Printed
from ._served import Served

# By it a plugin knows that a host has started it, and not a person. It is no secret.
COOKIE = ("FLEXCORE_PLUGIN", "294ee746ca7a0ad28a537fa30b00ae93")
# Threads for the host's own streams and questions, and for refusing calls that are too many.
SPARE_THREADS = 16
# Time that calls under way have to end after `Shutdown` or SIGTERM, in seconds: the host waits for 1 to 2.
DRAIN_S = 0.8


def run(plugin):
    """Is a plugin, until its host ends it; does not return. Where no host has started it, it says so on standard
    error, and the exit status is 1.
    """
    _logs.to_stderr()
    calls_at_once = plugin.calls_at_once
    try:
        served = Served(plugin, calls_at_once)
    except ValueError as error:
        sys.exit(f"the plugin breaks the contract: {error}")
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.exit("This is a plugin of FlexCore: it is started by its host. Try: flexcore plugin check FOLDER")
    _try_threads(calls_at_once + SPARE_THREADS)
    # A terminal interrupts the host's whole group; the host decides when a plugin ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    printed = Printed()
    services = GoPlugin(stop, printed, served.is_well)
    server = _server(calls_at_once, [served.handlers(), *services.handlers()])
    folder, is_own = os.environ.get("PLUGIN_UNIX_SOCKET_DIR"), False
    if not folder:
        folder, is_own = tempfile.mkdtemp(), True
    # Two plugins may be told the same folder.
    address = os.path.join(folder, f"p{os.getpid()}")
    said = _listen(server, address)
    server.start()
    _open_to_group(address)
    # Past the buffer of `sys.stdout`: what was printed before must not be in front of the first line.
    os.write(1, _first_line(address, said).encode())
    sys.stdout.flush()
    sys.stdout = printed.text()
    stop.wait()
    sys.stdout.flush()
    services.end()
    server.stop(DRAIN_S).wait(DRAIN_S)
    if is_own:
        shutil.rmtree(folder, ignore_errors=True)
    logging.shutdown()
    # Functions that do not end keep their threads, and Python would wait for them.
    os._exit(0)


def _try_threads(count):
    """Ends the process where a limit does not let so many threads start: later it would be calls that hang."""
    go, started = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=go.wait)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        sys.exit(
            f"{count} threads cannot be started, but {len(started)}: raise memory or processes among the `limits` in "
            "plugin.yaml, or lower `concurrency` there and `calls_at_once` of Plugin()"
        )
    finally:
        go.set()
        for thread in started:
            thread.join()


def _server(calls_at_once, handlers):
    threads = calls_at_once + SPARE_THREADS
    options = [
        # A little beyond the limits, so that a request that passes them is told so.
        ("grpc.max_receive_message_length", _limits.INPUT_BYTES_MAX + _limits.ENVELOPE_BYTES_MAX),
        ("grpc.max_send_message_length", _limits.OUTPUT_BYTES_MAX + _limits.ENVELOPE_BYTES_MAX),
        ("grpc.so_reuseport", 0),
    ]
    pool = concurrent.futures.ThreadPoolExecutor(threads, "rpc")
    # `Served` refuses calls that are too many, in words that say that nothing was done: gRPC's own limit does not.
    return grpc.server(pool, handlers, options=options)


def _listen(server, address):
    """Listens at a Unix socket. Returns the certificate for the first line; empty: without TLS."""
    target = f"unix:{address}"
    host_pem = os.environ.get("PLUGIN_CLIENT_CERT")
    if not host_pem:
        server.add_insecure_port(target)
        return ""
    from ._identity import Identity

    identity = Identity(host_pem.encode())
    server.add_secure_port(target, identity.credentials())
    return identity.told()


def _open_to_group(address):
    group = os.environ.get("PLUGIN_UNIX_SOCKET_GROUP")
    if group:
        shutil.chown(address, group=int(group) if group.isdigit() else group)
        os.chmod(address, 0o660)


def _first_line(address, certificate):
    # There is one version. A host that does not offer it refuses the plugin.
    line = f"1|{_contract.VERSION}|unix|{address}|grpc|{certificate}"
    asked = os.environ.get("PLUGIN_MULTIPLEX_GRPC") == "true"
    return f"{line}|false\n" if asked else f"{line}\n"
