"""An author's plugin as the contract has it: the handlers of the service `flexcore.plugin.v1.Plugin`."""

import concurrent.futures
import logging
import threading
import time

import grpc

from . import _contract, _json, _limits, _logs, failure
from .call import Call, ends_of, stop_of
from .decider import Event, Question

_log = logging.getLogger("flexcore_plugin")


class Served:
    """A plugin that is served. So many calls are worked on at once, and so many of streams."""

    def __init__(self, plugin, calls_at_once):
        self.plugin = plugin
        self.description = plugin.description()
        self._threads = concurrent.futures.ThreadPoolExecutor(calls_at_once, "call")
        self._calls_at_once = calls_at_once
        # Work of streams that goes on though its callers have given up.
        self._abandoned = set()
        # The ends of the calls that are worked on: one that is set though the function goes on is of a call that
        # was given up.
        self._calls = set()
        self._lock = threading.Lock()

    def is_well(self):
        """False when functions that go on for nobody have all places: those of calls, or those of streams."""
        with self._lock:
            given_up = sum(stop.is_set() for stop in self._calls)
        return max(given_up, len(self._abandoned)) < self._calls_at_once

    def handlers(self):
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        of = _contract
        methods = {
            "Describe": _method(unary, self.describe, of.DescribeRequest),
            "Configure": _method(unary, self.configure, of.ConfigureRequest),
            "Call": _method(unary, self.call, of.CallRequest),
            "Stream": _method(stream, self.stream, of.StreamRequest),
            "Decide": _method(stream, self.decide, of.DecideRequest),
        }
        return grpc.method_handlers_generic_handler(_contract.SERVICE, methods)

    def describe(self, request, rpc):
        return self.description

    def configure(self, request, rpc):
        _at_most(rpc, "a configuration, in bytes,", len(request.configuration), _limits.CONFIGURATION_BYTES_MAX)
        why = self.plugin.configurations.set(request.tenant, request.configuration)
        return _contract.ConfigureResponse(failure=why)

    def call(self, request, rpc):
        _has_context(rpc, request)
        _at_most(rpc, "an input, in bytes,", len(request.input), _limits.INPUT_BYTES_MAX)
        function = self.plugin.functions.get(request.function)
        if function is None:
            return _unknown(request.function)
        stop = stop_of(rpc)
        with self._lock:
            if len(self._calls) >= self._calls_at_once:
                return _failed(failure.Failure.passing("busy", _BUSY.format(self._calls_at_once)))
            self._calls.add(stop)
        try:
            about = (request.context, stop, ends_of(request.context), self.plugin.configurations)
            return _called(function, request.input, about)
        finally:
            with self._lock:
                self._calls.discard(stop)

    def stream(self, requests, rpc):
        """Answers each batch when all of it is done. The first message says what holds for all."""
        about, name = None, None
        stop = stop_of(rpc)
        for request in requests:
            _at_most(rpc, "a number of inputs", len(request.inputs), _limits.BATCH_ITEMS_MAX)
            size = sum(map(len, request.inputs))
            _at_most(rpc, "a batch of inputs, in bytes,", size, _limits.BATCH_BYTES_MAX)
            if about is None:
                _has_context(rpc, request)
                context, name = request.context, request.function
                about = (context, stop, ends_of(context), self.plugin.configurations)
            function = self.plugin.functions.get(name)
            if function is None:
                results = [_unknown(name)] * len(request.inputs)
            else:
                results = self._batch(rpc, function, request, about)
            yield _contract.StreamResponse(number=request.number, results=_together(results))

    def _batch(self, rpc, function, request, about):
        key = about[0].idempotency_key

        def one(index):
            # One of many calls, under a key of its own.
            own = f"{key}:{request.number}:{index}" if key else key
            return _called(function, request.inputs[index], about, own)

        count = len(request.inputs)
        at_once = min(function.at_once, count)
        if at_once <= 1:
            return [one(index) for index in range(count)]
        results, left, lock = [None] * count, iter(range(count)), threading.Lock()

        def work():
            while not about[1].is_set():
                with lock:
                    index = next(left, None)
                if index is None:
                    return
                results[index] = one(index)

        working = [self._threads.submit(work) for _ in range(at_once)]
        remaining = max(about[2] - time.monotonic(), 0)
        unfinished = concurrent.futures.wait(working, remaining).not_done
        if unfinished or None in results:
            about[1].set()
            for each in unfinished:
                if not each.cancel():
                    self._abandoned.add(each)
                    each.add_done_callback(self._abandoned.discard)
            rpc.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the caller's time is over")
        return results

    def decide(self, requests, rpc):
        for request in requests:
            if self.plugin.decide is None:
                rpc.abort(grpc.StatusCode.UNIMPLEMENTED, "this plugin decides nothing")
            _at_most(rpc, "a number of questions", len(request.questions), _limits.BATCH_ITEMS_MAX)
            size = sum(question.ByteSize() for question in request.questions)
            _at_most(rpc, "a batch of questions, in bytes,", size, _limits.BATCH_BYTES_MAX)
            for question in request.questions:
                _has_context(rpc, question)
            decisions, size = [], 0
            for question in request.questions:
                decision = _decided(self.plugin.decide, question)
                size += decision.ByteSize()
                if size > _limits.RESULTS_BYTES_MAX:
                    decision = _contract.Decision(failure=failure.broken(_TOO_MUCH))
                decisions.append(decision)
            yield _contract.DecideResponse(number=request.number, decisions=decisions)


_TOO_MUCH = "the answers of one batch are too large together"
_BUSY = "the plugin works on {} calls already, as many as its `calls_at_once`; nothing was done"


def _method(kind, handler, request):
    return kind(
        handler,
        request_deserializer=request.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )


def _called(function, data, about, key=None):
    """The response to one call. Whatever the author's code raises becomes a failure."""
    context, stop, ends, configured = about
    name = function.described["name"]
    try:
        read = _json.read(data)
    except _json.NotJson as error:
        return _failed(failure.Failure("invalid_input", f"the input: {error}"))
    call = Call(read, context, stop, ends, configured, key)
    around = {"function": name, "tenant": call.tenant}
    if call.idempotency_key:
        around["idempotency_key"] = call.idempotency_key
    if call.traceparent:
        around["traceparent"] = call.traceparent
    token = _logs.fields.set(around)
    try:
        output = function.run(call)
    except failure.Failure as why:
        return _failed(why)
    # Also what is no `Exception`, such as a cancellation by asyncio: gRPC would leave such a call without an answer.
    except BaseException as error:
        _log.exception("%s raised", name)
        return _contract.CallResponse(failure=failure.raised(error))
    finally:
        _logs.fields.reset(token)
    try:
        output = _json.write(output)
    except _json.NotJson as error:
        return _failed(failure.Failure("invalid_output", f"the output is no JSON: {error}"))
    if len(output) > _limits.OUTPUT_BYTES_MAX:
        fault = f"an output, in bytes, of {len(output)} is over the limit of {_limits.OUTPUT_BYTES_MAX}"
        return _contract.CallResponse(failure=failure.broken(fault))
    return _contract.CallResponse(output=output)


def _together(results):
    """Outputs that do not go into one message with those before them are left out."""
    size, fitting = 0, []
    for result in results:
        size += result.ByteSize()
        too_much = size > _limits.RESULTS_BYTES_MAX
        fitting.append(_contract.CallResponse(failure=failure.broken(_TOO_MUCH)) if too_much else result)
    return fitting


def _decided(decide, question):
    token = _logs.fields.set({"command": question.command, "tenant": question.context.tenant})
    try:
        return _accepted(decide(Question(question)))
    except failure.Rejected as why:
        if why.temporary:
            fault = "it is a rejection that is temporary: what the rules refuse stays refused"
            return _contract.Decision(failure=failure.broken(fault))
        return _contract.Decision(rejected=failure.message_of(why))
    except failure.Failure as why:
        return _contract.Decision(failure=failure.message_of(why))
    except BaseException as error:
        _log.exception("the decider raised")
        return _contract.Decision(failure=failure.raised(error))
    finally:
        _logs.fields.reset(token)


def _accepted(events):
    decision = _contract.Decision()
    # Set, also where there are none.
    decision.events.SetInParent()
    if not isinstance(events, (list, tuple)) or not all(isinstance(event, Event) for event in events):
        return _contract.Decision(failure=failure.broken("a decision is a list of Event"))
    if len(events) > _limits.EVENTS_MAX:
        fault = f"a number of events of {len(events)} is over the limit of {_limits.EVENTS_MAX}"
        return _contract.Decision(failure=failure.broken(fault))
    for event in events:
        name = event.event if isinstance(event.event, str) else ""
        if not 0 < len(name.encode("utf-8", "replace")) <= _limits.EVENT_NAME_BYTES_MAX:
            fault = f"the name of an event is no text of 1 to {_limits.EVENT_NAME_BYTES_MAX} bytes"
            return _contract.Decision(failure=failure.broken(fault))
        try:
            decision.events.events.add(event=name, data=_json.write(event.data))
        except _json.NotJson as error:
            why = failure.Failure("invalid_event", f"{name} is no JSON: {error}")
            return _contract.Decision(failure=failure.message_of(why))
    return decision


def _failed(why):
    return _contract.CallResponse(failure=failure.message_of(why))


def _unknown(name):
    return _failed(failure.Failure("unknown_function", f"there is no function {name[:100]!r}"))


def _has_context(rpc, request):
    if not request.HasField("context"):
        rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, "a request has no context")


def _at_most(rpc, what, size, limit):
    if size > limit:
        rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{what} of {size} is over the limit of {limit}")
