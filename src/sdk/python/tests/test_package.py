"""The package over a real socket, with a client on grpcio in place of the host: what the host never sends, too."""

import base64
import concurrent.futures
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from flexcore_plugin import _contract as contract  # noqa: E402
from flexcore_plugin import _json, _limits, _logs, failure  # noqa: E402
from flexcore_plugin._go_plugin import PRINTED_BYTES_MAX, Printed  # noqa: E402
from flexcore_plugin._identity import Identity  # noqa: E402
from flexcore_plugin._run import COOKIE  # noqa: E402

LAB = HERE / "lab.py"


class Host:
    """The lab, started; a channel to it. With TLS under an identity of ours, and within an address space."""

    def __init__(self, tls=False, arguments=(), environment=None, memory_bytes=None):
        self.folder = tempfile.TemporaryDirectory()
        self.identity = Identity(b"") if tls else None
        told = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PLUGIN_UNIX_SOCKET_DIR": self.folder.name,
            "PLUGIN_PROTOCOL_VERSIONS": "1",
            COOKIE[0]: COOKIE[1],
            **(environment or {}),
        }
        if tls:
            told["PLUGIN_CLIENT_CERT"] = self.identity._pem.decode()
        pipe = subprocess.PIPE
        # Without buffers: what follows the first line is read by another way.
        self.process = subprocess.Popen(
            [sys.executable, LAB, *arguments],
            bufsize=0,
            env=told,
            stdout=pipe,
            stderr=pipe,
            stdin=subprocess.DEVNULL,
            preexec_fn=memory_bytes and (lambda: resource.setrlimit(resource.RLIMIT_AS, [memory_bytes] * 2)),
        )
        self.line = self.process.stdout.readline().decode().rstrip("\n")
        self.fields = self.line.split("|")
        self.channel = self.dialled(self.identity) if self.line else None

    def dialled(self, identity):
        target = f"unix:{self.fields[3]}"
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.max_receive_message_length", -1)]
        if self.identity is None:
            return grpc.insecure_channel(target, options)
        der = base64.b64decode(self.fields[5] + "=" * (-len(self.fields[5]) % 4))
        body = base64.encodebytes(der).decode()
        plugin_pem = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n".encode()
        own = (identity._key_pem, identity._pem) if identity else (None, None)
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(plugin_pem, *own), options)

    def unary(self, method, request, answer, timeout=20):
        ask = self.channel.unary_unary(
            method, lambda it: it.SerializeToString(), answer.FromString if answer else None
        )
        return ask(request, timeout=timeout)

    def call(self, function, value, timeout=20, data=None):
        request = contract.CallRequest(function=function, context=context(timeout))
        request.input = json.dumps(value).encode() if data is None else data
        method = f"/{contract.SERVICE}/Call"
        response = self.unary(method, request, contract.CallResponse, timeout)
        if response.HasField("failure"):
            return response.failure
        return json.loads(response.output)

    def many(self, method, requests, answer, timeout=20):
        ask = self.channel.stream_stream(
            f"/{contract.SERVICE}/{method}", lambda it: it.SerializeToString(), answer.FromString
        )
        return list(ask(iter(requests), timeout=timeout))

    def health(self, service="plugin"):
        request = contract.HealthCheckRequest(service=service)
        return self.unary("/grpc.health.v1.Health/Check", request, contract.HealthCheckResponse).status

    def stop(self):
        """Returns the exit status, and what was logged."""
        self.unary("/plugin.GRPCController/Shutdown", contract.Nothing(), contract.Nothing)
        _, err = self.process.communicate(timeout=10)
        self.channel.close()
        self.folder.cleanup()
        # gRPC has a log of its own.
        lines = [json.loads(line) for line in err.splitlines() if line.startswith(b"{")]
        return self.process.returncode, lines


def context(timeout=20, tenant="acme"):
    made = contract.CallRequest().context
    made.tenant, made.actor, made.idempotency_key, made.timeout_ms = tenant, "ann", "k1", int(timeout * 1000)
    return made


class Served(unittest.TestCase):
    def setUp(self):
        self.host = Host()

    def tearDown(self):
        self.host.process.kill()
        self.host.process.communicate()
        self.host.folder.cleanup()

    def refused(self, code, ask):
        with self.assertRaises(grpc.RpcError) as raised:
            ask()
        self.assertEqual(raised.exception.code(), code)

    def test_functions_answer_with_json_or_a_failure(self):
        host = self.host
        self.assertEqual(host.call("echo", ["é", None, 1.5]), ["é", None, 1.5])
        about = host.call("about", None)
        self.assertEqual((about["tenant"], about["actor"], about["key"]), ("acme", "ann", "k1"))
        self.assertTrue(15_000 < about["remaining_ms"] <= 20_000)
        why = host.call("fail", {"code": "busy", "pause_ms": 1_500})
        self.assertEqual((why.code, why.temporary, why.retry_after_ms), ("busy", True, 1_500))
        self.assertEqual(why.details, b'{"why":"a test"}')
        for function, value, code in [
            ("fail", {"code": "Not A Code"}, "broken_answer"),
            ("nothing", None, "unknown_function"),
            ("leave", None, "internal"),
            ("settings", None, "not_configured"),
            ("no_json", "set", "invalid_output"),
            ("no_json", "nan", "invalid_output"),
            ("big", 16 * 1024 * 1024, "broken_answer"),
        ]:
            why = host.call(function, value)
            self.assertEqual((why.code, why.temporary), (code, False), function)
        self.assertEqual(len(host.call("big", 16 * 1024 * 1024 - 2)), 16 * 1024 * 1024 - 2)

    def test_an_exception_is_a_failure_without_its_text_and_a_line_of_the_log(self):
        why = self.host.call("panic", None)
        self.assertEqual(why.code, "internal")
        self.assertIn("KeyError", why.message)
        self.assertNotIn("s3cr3t", why.message)
        status, lines = self.host.stop()
        self.assertEqual(status, 0)
        self.assertEqual(lines[0]["@level"], "error")
        self.assertEqual((lines[0]["function"], lines[0]["tenant"]), ("panic", "acme"))
        self.assertIn("lab.py", lines[0]["traceback"])

    def test_what_is_no_exception_is_an_answer_too(self):
        configure = f"/{contract.SERVICE}/Configure"
        for beyond, raised in [
            ("cancelled", "CancelledError"),
            ("interrupted", "KeyboardInterrupt"),
            ("left", "SystemExit"),
        ]:
            settings = json.dumps({"url": beyond}).encode()
            request = contract.ConfigureRequest(tenant="acme", configuration=settings)
            answer = self.host.unary(configure, request, contract.ConfigureResponse, timeout=5)
            question = {"context": context(), "command": beyond, "state": b"1", "payload": b"1"}
            asked = [contract.DecideRequest(number=1, questions=[question])]
            (decided,) = self.host.many("Decide", asked, contract.DecideResponse, timeout=5)
            first = contract.StreamRequest(number=1, context=context(), function="beyond")
            first.inputs.extend([json.dumps(beyond).encode()] * 2)
            (batch,) = self.host.many("Stream", [first], contract.StreamResponse, timeout=5)
            failures = [self.host.call("beyond", beyond, timeout=5), answer.failure, decided.decisions[0].failure]
            for why in failures + [result.failure for result in batch.results]:
                self.assertEqual((why.code, why.temporary), ("internal", False), beyond)
                self.assertIn(raised, why.message)
        self.assertEqual(self.host.call("echo", 1), 1)
        _, lines = self.host.stop()
        self.assertEqual(len(lines), 15, "each is a line of the log")

    def test_what_is_no_json_is_refused(self):
        for data in [b"", b"{", b"\0", b"\xff", b"NaN", b"[1e999]", b"1" * 5_000, b"[" * 4_000_000, b'"\xed\xa0\x80"']:
            why = self.host.call("echo", None, data=data)
            if data == b"[1e999]":
                self.assertEqual(why.code, "invalid_output")
            else:
                self.assertEqual(why.code, "invalid_input", data[:10])
        self.assertEqual(self.host.call("echo", None, data=b'"\\ud800"').code, "invalid_output")

    def test_limits_are_held(self):
        wrong = grpc.StatusCode.INVALID_ARGUMENT
        largest = b'"' + b"x" * (4 * 1024 * 1024 - 2) + b'"'
        self.assertEqual(len(self.host.call("echo", None, data=largest)), len(largest) - 2)
        self.refused(wrong, lambda: self.host.call("echo", None, data=largest + b" "))
        method, answer = f"/{contract.SERVICE}/Call", contract.CallResponse
        self.refused(wrong, lambda: self.host.unary(method, contract.CallRequest(function="echo"), answer))
        batch = lambda inputs, of=context(): self.host.many(  # noqa: E731
            "Stream",
            [contract.StreamRequest(number=1, context=of, function="echo", inputs=inputs)],
            contract.StreamResponse,
        )
        self.assertEqual(len(batch([b"1"] * 1_024)[0].results), 1_024)
        self.refused(wrong, lambda: batch([b"1"] * 1_025))
        self.refused(wrong, lambda: batch([largest, b"1"]))
        self.refused(wrong, lambda: batch([b"1"], None))
        settings = contract.ConfigureRequest(tenant="acme", configuration=b" " * (1024 * 1024 + 1))
        method, answer = f"/{contract.SERVICE}/Configure", contract.ConfigureResponse
        self.refused(wrong, lambda: self.host.unary(method, settings, answer))
        questions = [contract.DecideRequest(number=1, questions=[{"command": "add"}])]
        self.refused(wrong, lambda: self.host.many("Decide", questions, contract.DecideResponse))

    def test_batches_are_answered_in_order_and_at_once(self):
        requests = [
            contract.StreamRequest(number=n, inputs=[str(1_000 * n + i).encode() for i in range(500)])
            for n in range(1, 6)
        ]
        requests[0].context.CopyFrom(context())
        requests[0].function = "echo"
        answers = self.host.many("Stream", requests, contract.StreamResponse)
        for request, response in zip(requests, answers):
            self.assertEqual(request.number, response.number)
            self.assertEqual(list(request.inputs), [result.output for result in response.results])
        for function, check in [
            ("busy", lambda outputs: self.assertEqual(max(map(int, outputs)), 4)),
            ("about", lambda outputs: self.assertEqual(len({json.loads(it)["key"] for it in outputs}), 100)),
        ]:
            first = contract.StreamRequest(number=1, context=context(), function=function, inputs=[b"1"] * 100)
            (answer,) = self.host.many("Stream", [first], contract.StreamResponse)
            check([result.output for result in answer.results])
        large = [b'"' + b"x" * 100 + b'"']
        first = contract.StreamRequest(number=1, context=context(), function="big", inputs=[b"9000000"] * 2 + large)
        (answer,) = self.host.many("Stream", [first], contract.StreamResponse)
        self.assertEqual([it.failure.code for it in answer.results], ["", "broken_answer", "broken_answer"])

    def test_a_call_that_is_given_up_is_told_and_another_one_is_served(self):
        for timeout in [0.2, 0.2]:
            late = grpc.StatusCode.DEADLINE_EXCEEDED
            self.refused(late, lambda: self.host.call("sleep", 60_000, timeout))
            first = contract.StreamRequest(number=1, context=context(timeout), function="hang", inputs=[b"1"] * 3)
            self.refused(late, lambda: self.host.many("Stream", [first], contract.StreamResponse))
        self.assertEqual(self.host.call("echo", 1), 1)
        status, lines = self.host.stop()
        self.assertEqual(status, 0, "though calls hang")
        self.assertEqual([line["@message"] for line in lines].count("sleep has ended"), 2)

    def test_a_plugin_whose_threads_all_hang_is_not_well(self):
        self.assertEqual(self.host.health(), 1)
        for _ in range(4):
            first = contract.StreamRequest(number=1, context=context(0.3), function="hang", inputs=[b"1"] * 16)
            with self.assertRaises(grpc.RpcError):
                self.host.many("Stream", [first], contract.StreamResponse, timeout=5)
        self.assertEqual(self.host.health(), 2)
        self.refused(grpc.StatusCode.NOT_FOUND, lambda: self.host.health("other"))

    def test_each_tenant_has_its_configuration(self):
        def configure(settings, tenant="acme"):
            request = contract.ConfigureRequest(tenant=tenant, configuration=settings)
            return self.host.unary(f"/{contract.SERVICE}/Configure", request, contract.ConfigureResponse).failure.code

        self.assertEqual(configure(b'{"url": "https://a"}'), "")
        self.assertEqual(self.host.call("settings", None), "a")
        self.assertEqual(configure(b'{"url": "http://a"}'), "no_https")
        self.assertEqual(self.host.call("settings", None).code, "no_https")
        self.assertEqual(configure(b'{"url": 5}'), "internal")
        self.assertEqual(configure(b'{"url": "s3cr3t"}'), "internal")
        self.assertEqual(self.host.call("settings", None).code, "internal")
        self.assertEqual(configure(b"{"), "bad_configuration")
        self.assertEqual(configure(b'{"url": "https://b"}', "other"), "")
        self.assertEqual(configure(b"null"), "")
        self.assertEqual(self.host.call("settings", None).code, "not_configured")
        _, lines = self.host.stop()
        self.assertEqual([line["raised"] for line in lines], ["AttributeError", "ValueError"])
        self.assertNotIn("s3cr3t", str(lines))

    def test_the_last_configuration_holds_though_an_older_one_is_made_later(self):
        def configure(settings, to=None):
            request = contract.ConfigureRequest(tenant="acme", configuration=settings)
            response = self.host.unary(f"/{contract.SERVICE}/Configure", request, contract.ConfigureResponse)
            if to is not None:
                to.append(response.failure)
            return response.failure.code

        for last, now in [(b'{"url": "https://new"}', "new"), (b"null", None), (b'{"url": "http://a"}', None)]:
            late = []
            slow = threading.Thread(target=configure, args=(b'{"url": "https://old", "wait": 1}', late))
            slow.start()
            time.sleep(0.4)
            configure(last)
            before = self.host.call("settings", None)
            slow.join()
            self.assertEqual((late[0].code, late[0].temporary), ("overtaken", True))
            after = self.host.call("settings", None)
            self.assertEqual(after, before)
            self.assertEqual(after if isinstance(after, str) else None, now)

    def test_decisions(self):
        def question(command, state, payload):
            return {"context": context(), "command": command, "state": state, "payload": payload}

        asked = [
            question("add", b"null", b"3"),
            question("nothing", b"1", b"null"),
            question("add", b"9", b"2"),
            question("panic", b"1", b"1"),
            question("wrong", b"1", b"1"),
            question("add", b"{", b"1"),
            question("remove", b"1", b"1"),
        ]
        requests = [contract.DecideRequest(number=n, questions=asked) for n in (1, 2)]
        first, second = self.host.many("Decide", requests, contract.DecideResponse)
        self.assertEqual((first.number, second.number), (1, 2))
        self.assertEqual(list(first.decisions), list(second.decisions))
        event = first.decisions[0].events.events[0]
        self.assertEqual((event.event, event.data), ("added", b'{"by":3}'))
        self.assertEqual(first.decisions[1].WhichOneof("result"), "events")
        self.assertEqual(first.decisions[2].rejected.code, "too_many")
        codes = [decision.failure.code for decision in first.decisions[3:]]
        self.assertEqual(codes, ["internal", "broken_answer", "invalid_question", "unknown_command"])

    def test_it_ends_when_it_is_told_to(self):
        held = self.host.channel.stream_stream("/plugin.GRPCBroker/StartStream")(iter(()))
        stdio = self.host.channel.unary_stream(
            "/plugin.GRPCStdio/StreamStdio", response_deserializer=contract.StdioData.FromString
        )
        printed = stdio(b"")
        self.host.call("log", None)
        self.assertEqual(next(iter(printed)).data, b"printed\n")
        began = time.monotonic()
        status, lines = self.host.stop()
        self.assertEqual(status, 0)
        self.assertLess(time.monotonic() - began, 0.7, "it does not wait for streams that never end")
        expected = {"@level": "warn", "@message": "one\ntwo", "@module": "lab", "count": 3, "name_of": "x"}
        self.assertLessEqual(expected.items(), lines[0].items())
        self.assertEqual(list(held), [])


class Started(unittest.TestCase):
    def test_tls_takes_the_host_alone(self):
        host = Host(tls=True)
        self.assertEqual(host.call("echo", 1), 1)
        for identity in [None, Identity(b"")]:
            with host.dialled(identity) as channel, self.assertRaises(grpc.RpcError):
                channel.unary_unary("/plugin.GRPCController/Shutdown")(b"", timeout=3)
        self.assertEqual(host.call("echo", 2), 2)
        self.assertEqual(host.stop()[0], 0)

    def test_the_first_line_comes_first(self):
        host = Host(arguments=["early"], environment={"PLUGIN_MULTIPLEX_GRPC": "true"})
        self.assertEqual([host.fields[at] for at in (0, 1, 2, 4, 5, 6)], ["1", "1", "unix", "grpc", "", "false"])
        host.process.terminate()
        out, _ = host.process.communicate(timeout=10)
        self.assertEqual((host.process.returncode, out), (0, b"printed early\n"))
        host.folder.cleanup()

    def test_limits_that_are_too_narrow_are_told_at_the_start(self):
        host = Host(memory_bytes=400 << 20)
        _, err = host.process.communicate(timeout=10)
        self.assertEqual((host.process.returncode, host.line), (1, ""))
        self.assertIn(b"threads cannot be started", err)
        host.folder.cleanup()

    def test_calls_beyond_those_at_once_are_refused_for_now(self):
        host = Host(environment={"CALLS_AT_ONCE": "2"})
        with concurrent.futures.ThreadPoolExecutor(40) as threads:
            answers = list(threads.map(lambda _: host.call("sleep", 800), range(40)))
        done = [answer for answer in answers if answer is None]
        refused = {(answer.code, answer.temporary) for answer in answers if answer is not None}
        self.assertEqual((len(done), refused), (2, {("busy", True)}))
        self.assertEqual(host.health(), 1)
        # Those that nobody waits for keep their places.
        for number in (1, 2):
            with self.assertRaises(grpc.RpcError):
                host.call("hang", None, timeout=0.3)
            self.assertEqual(host.health(), number)
        self.assertEqual(host.stop()[0], 0)

    def test_a_call_ends_before_the_plugin_does(self):
        host = Host()
        answers = []
        calling = threading.Thread(target=lambda: answers.append(host.call("sleep", 400)))
        calling.start()
        time.sleep(0.2)
        self.assertEqual(host.stop()[0], 0)
        calling.join()
        self.assertEqual(answers, [None])


class Pure(unittest.TestCase):
    def test_messages_of_failures_are_cut_between_characters(self):
        made = failure.message_of(failure.Failure("long", "é" * 5_000))
        self.assertTrue(len(made.message.encode()) <= _limits.FAILURE_MESSAGE_BYTES_MAX)
        self.assertTrue(made.message.endswith("é…"))
        details = failure.Failure("large", "x", details="x" * _limits.DETAILS_BYTES_MAX)
        self.assertEqual(failure.message_of(details).code, "broken_answer")
        for pause in [float("nan"), float("inf"), "soon"]:
            passing = failure.Failure.passing("busy", "x", retry_after=pause)
            self.assertEqual(failure.message_of(passing).code, "broken_answer", pause)
        for word in ["", "A", "1a", "a-b", "a\n", "a" * 41, 5]:
            self.assertFalse(failure.is_word(word), word)
        self.assertTrue(failure.is_word("a" * 40))

    def test_a_value_in_itself_is_no_json(self):
        endless = []
        endless.append(endless)
        with self.assertRaises(_json.NotJson):
            _json.write(endless)

    def test_printed_text_is_bounded(self):
        printed = Printed()
        text = printed.text()
        for _ in range(300):
            text.write("x" * 10_000 + "\n")
        text.flush()
        taken = []
        while (chunk := printed.take(lambda: True)) is not None:
            taken.append(chunk)
        self.assertLessEqual(sum(map(len, taken)), PRINTED_BYTES_MAX)
        self.assertTrue(taken[-1].endswith(b"\n"))

    def test_a_line_of_the_log_is_never_too_long(self):
        import logging

        record = logging.makeLogRecord({"msg": "𝄞" * 100_000, "levelno": logging.INFO, "name": "x"})
        for at in range(20):
            setattr(record, f"field{at}", "x" * 10_000)
        line = _logs.line_of(record)
        self.assertLess(len(line), 64 * 1024)
        self.assertNotIn("field1", json.loads(line))


if __name__ == "__main__":
    unittest.main()
