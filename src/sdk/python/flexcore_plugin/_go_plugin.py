"""go-plugin's own services, a plugin's side: the end, standard output, health, and a broker that is not used."""

import collections
import io
import threading

import grpc

from . import _contract

# Printed bytes that wait for the host; of more, the first are lost.
PRINTED_BYTES_MAX = 1024 * 1024
# Bytes of one message of them.
CHUNK_BYTES_MAX = 32 * 1024
_SERVING, _NOT_SERVING = 1, 2


class GoPlugin:
    """The services. `stop` is set when the plugin has to end."""

    def __init__(self, stop, printed, is_well):
        self._stop = stop
        self._printed = printed
        self._is_well = is_well
        self._lock = threading.Lock()
        self._ends = set()
        self._is_over = False

    def handlers(self):
        of = _contract
        serve = [
            ("plugin.GRPCController", "Shutdown", grpc.unary_unary_rpc_method_handler, self.shutdown, of.Nothing),
            ("plugin.GRPCStdio", "StreamStdio", grpc.unary_stream_rpc_method_handler, self.stdio, of.Nothing),
            ("plugin.GRPCBroker", "StartStream", grpc.stream_stream_rpc_method_handler, self.broker, of.ConnInfo),
            ("grpc.health.v1.Health", "Check", grpc.unary_unary_rpc_method_handler, self.check, of.HealthCheckRequest),
        ]
        return [
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: kind(
                        handler,
                        request_deserializer=request.FromString,
                        response_serializer=lambda answer: answer.SerializeToString(),
                    )
                },
            )
            for service, name, kind, handler, request in serve
        ]

    def end(self):
        """Ends the streams that would be open for ever."""
        with self._lock:
            self._is_over = True
            ends = list(self._ends)
        for end in ends:
            end()

    def _until_over(self, rpc, end):
        """Has `end` called when the RPC is over, or the plugin ends."""
        with self._lock:
            self._ends.add(end)
            is_over = self._is_over
        if is_over or not rpc.add_callback(lambda: self._over(end)):
            self._over(end)

    def _over(self, end):
        with self._lock:
            self._ends.discard(end)
        end()

    def shutdown(self, request, rpc):
        self._stop.set()
        return _contract.Nothing()

    def stdio(self, request, rpc):
        ended = threading.Event()
        self._until_over(rpc, lambda: (ended.set(), self._printed.wake()))
        while (data := self._printed.take(ended.is_set)) is not None:
            yield _contract.StdioData(channel=1, data=data)

    def broker(self, requests, rpc):
        """Neither side announces anything: the stream is open until one of them ends it."""
        ended = threading.Event()
        self._until_over(rpc, ended.set)
        ended.wait()
        return iter(())

    def check(self, request, rpc):
        if request.service not in ("", "plugin", _contract.SERVICE):
            rpc.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _contract.HealthCheckResponse(status=_SERVING if self._is_well() else _NOT_SERVING)


class Printed(io.RawIOBase):
    """What the plugin's code prints, for the host that reads it."""

    def __init__(self):
        super().__init__()
        self._chunks = collections.deque()
        self._bytes = 0
        self._news = threading.Condition()

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        with self._news:
            for start in range(0, len(data), CHUNK_BYTES_MAX):
                chunk = data[start : start + CHUNK_BYTES_MAX]
                self._chunks.append(chunk)
                self._bytes += len(chunk)
            while self._bytes > PRINTED_BYTES_MAX:
                self._bytes -= len(self._chunks.popleft())
            self._news.notify_all()
        return len(data)

    def wake(self):
        with self._news:
            self._news.notify_all()

    def take(self, is_over):
        """The next chunk; `None` when it is over, and all is taken."""
        with self._news:
            while not self._chunks:
                if is_over():
                    return None
                self._news.wait()
            chunk = self._chunks.popleft()
            self._bytes -= len(chunk)
            return chunk

    def text(self):
        """As `sys.stdout`."""
        buffered = io.BufferedWriter(self)
        return io.TextIOWrapper(buffered, "utf-8", "backslashreplace", line_buffering=True)
