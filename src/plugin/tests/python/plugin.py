#!/usr/bin/env python3
"""A plugin on grpcio alone, with no library of go-plugin: plain, AutoMTLS, callbacks, stdio."""

import base64
import datetime
import json
import os
import queue
import signal
import sys
import tempfile
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import go_plugin_pb2
import go_plugin_pb2_grpc
import lab_pb2
import lab_pb2_grpc

COOKIE = ("FLEXCORE_PLUGIN", "flexcore-lab-7f3a")
VERSIONS = {1, 2}
# More than the 4 MiB that gRPC libraries take unless told otherwise.
BIG_BYTES = 16 << 20
# As the reference: the time for the host to announce a service.
ANNOUNCED_WITHIN_S = 5


class Identity:
    """A key and a certificate of this process alone, and the one certificate of the host."""

    def __init__(self, host_pem):
        self.host_pem = host_pem
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.timezone.utc)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=365))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(x509.ExtendedKeyUsage(usages), False)
            .sign(key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self.key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def serving(self):
        pair = [(self.key_pem, self.pem)]
        return grpc.ssl_server_credentials(pair, self.host_pem, require_client_auth=True)

    def dialling(self):
        return grpc.ssl_channel_credentials(self.host_pem, self.key_pem, self.pem)

    def said(self):
        return base64.b64encode(self.der).rstrip(b"=").decode()


class Broker(go_plugin_pb2_grpc.GRPCBrokerServicer):
    """The services that the host announces, by their numbers."""

    def __init__(self, identity):
        self.identity = identity
        self.announced = {}
        self.news = threading.Condition()

    def StartStream(self, requests, context):
        def read():
            try:
                for info in requests:
                    with self.news:
                        self.announced[info.service_id] = info
                        self.news.notify_all()
            except grpc.RpcError:
                pass

        threading.Thread(target=read, daemon=True).start()
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait()
        return iter(())

    def dial(self, number):
        with self.news:
            if not self.news.wait_for(lambda: number in self.announced, ANNOUNCED_WITHIN_S):
                raise TimeoutError(f"the host announced no service {number}")
            info = self.announced.pop(number)
        target = f"unix:{info.address}" if info.network == "unix" else info.address
        if self.identity is None:
            # grpcio names a Unix socket's path as the host, which Rust's HTTP/2 refuses.
            return grpc.insecure_channel(target, [("grpc.default_authority", "localhost")])
        options = [("grpc.ssl_target_name_override", "localhost")]
        return grpc.secure_channel(target, self.identity.dialling(), options)


class Stdio(go_plugin_pb2_grpc.GRPCStdioServicer):
    """What the plugin's code prints, for the one host that reads it."""

    def __init__(self):
        self.printed = queue.Queue()

    def StreamStdio(self, request, context):
        context.add_callback(lambda: self.printed.put(None))
        while (data := self.printed.get()) is not None:
            yield data

    def put(self, channel, text):
        self.printed.put(go_plugin_pb2.StdioData(channel=channel, data=text.encode()))


class Controller(go_plugin_pb2_grpc.GRPCControllerServicer):
    def __init__(self, stop):
        self.stop = stop

    def Shutdown(self, request, context):
        self.stop.set()
        return go_plugin_pb2.Nothing()


def answer(request):
    return lab_pb2.TransformResponse(id=request.id, payload=request.payload.upper())


class Transform(lab_pb2_grpc.TransformServicer):
    def __init__(self, broker, stdio):
        self.broker = broker
        self.stdio = stdio

    def Apply(self, request, context):
        if request.id == "crash":
            os._exit(7)
        if request.id == "hang":
            threading.Event().wait()
        if request.id == "big":
            return lab_pb2.TransformResponse(id="big", payload=b"x" * BIG_BYTES)
        if request.id == "log":
            line = {"@level": "info", "@message": "structured hello", "@module": "transform"}
            print(json.dumps(line | {"n": 42}), file=sys.stderr, flush=True)
            self.stdio.put(1, "hello on plugin stdout\n")
            self.stdio.put(2, "hello on plugin stderr\n")
        response = answer(request)
        if request.callback_id:
            with self.broker.dial(request.callback_id) as channel:
                adder = lab_pb2_grpc.HostAdderStub(channel)
                added = adder.Add(lab_pb2.AddRequest(a=40, b=2), timeout=ANNOUNCED_WITHIN_S)
            response.note = f"host says {added.sum}"
        return response

    def ApplyStream(self, requests, context):
        for request in requests:
            yield answer(request)


def main():
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.exit("This is a plugin: a host starts it.")
    # A terminal interrupts the host's whole group; the host decides when a plugin ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host_pem = os.environ.get("PLUGIN_CLIENT_CERT")
    identity = Identity(host_pem.encode()) if host_pem else None
    stop, broker, stdio = threading.Event(), Broker(identity), Stdio()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Each stream of broker and stdio keeps a thread, and so does a call that hangs.
    workers = futures.ThreadPoolExecutor(48)
    server = grpc.server(workers, options=[("grpc.max_receive_message_length", -1)])
    lab_pb2_grpc.add_TransformServicer_to_server(Transform(broker, stdio), server)
    go_plugin_pb2_grpc.add_GRPCBrokerServicer_to_server(broker, server)
    go_plugin_pb2_grpc.add_GRPCStdioServicer_to_server(stdio, server)
    go_plugin_pb2_grpc.add_GRPCControllerServicer_to_server(Controller(stop), server)
    checks = health.HealthServicer()
    checks.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [lab_pb2.DESCRIPTOR.services_by_name["Transform"].full_name]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    folder = os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or None
    with tempfile.TemporaryDirectory(dir=folder) as place:
        address = os.path.join(place, "s")
        if identity:
            server.add_secure_port(f"unix:{address}", identity.serving())
        else:
            server.add_insecure_port(f"unix:{address}")
        server.start()
        offered = map(int, (os.environ.get("PLUGIN_PROTOCOL_VERSIONS") or "1").split(","))
        version = max(VERSIONS.intersection(offered), default=min(VERSIONS))
        said = identity.said() if identity else ""
        print(f"1|{version}|unix|{address}|grpc|{said}", flush=True)
        stop.wait()
        server.stop(0.1).wait()
    # Calls that hang keep their threads, and Python would wait for them.
    os._exit(0)


if __name__ == "__main__":
    main()
