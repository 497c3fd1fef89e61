"""A plugin on the real host, for its author's tests: started as FlexCore starts it, with its guard and with TLS,
called with JSON, and held to its own schemas.

    from flexcore_plugin import testing

    with testing.start("greeter.pyz") as plugin:
        assert plugin.call("greet", {"name": "Ada"}) == {"text": "Hello, Ada!"}
    testing.conforms("greeter.pyz")

The host is the executable `flexcore`: that of the environment's FLEXCORE, else the one on the PATH. A plugin that is
a folder or a plugin.yaml is started as the manifest says. It runs with the Python and the packages of its test.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time

from .decider import Event
from .failure import Failure, Rejected

# Longest wait for an answer, in seconds, beyond the time that the plugin has for it.
PATIENCE_S = 60
# Lines of the log that are kept; of more, the first.
LINES_MAX = 10_000


def start(place, environment=None, arguments=()):
    """Starts a plugin: its file, its folder or its plugin.yaml. To be used in a `with`, at whose end it is ended."""
    return Running(place, environment or {}, arguments)


def conforms(place, environment=None, arguments=()):
    """Holds a plugin to what every plugin has to do. Raises `AssertionError` if it does something else."""
    line = [*_flexcore("check", place, environment or {}, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise AssertionError(f"{done.stdout}{done.stderr}")


class Running:
    """A plugin that runs. Calls are made for the tenant `test` unless they say another one."""

    def __init__(self, place, environment, arguments):
        pipe = subprocess.PIPE
        line = _flexcore("try", place, environment, arguments)
        self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe)
        self._answers = queue.Queue()
        self._log = []
        self._threads = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._lock = threading.Lock()
        try:
            self.description = self._ask({"do": "describe"})["description"]
        except BaseException:
            self._process.kill()
            self._close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.stop(check=kind is None)

    def call(self, function, input=None, **more):
        """Calls a function; raises the `Failure` that it raises. `more`: tenant, actor, key, timeout_ms.

        Raises `AssertionError` where the host would refuse the input, or the plugin breaks the contract.
        """
        return _output(self._ask({"do": "call", "function": function, "input": input, **more}))

    def stream(self, function, inputs, **more):
        """Calls a function for each input, on one stream. Returns outputs, and a `Failure` for each that failed."""
        asked = {"do": "stream", "function": function, "inputs": list(inputs), **more}
        results = self._ask(asked)["results"]
        return [_failure(it["failure"]) if "failure" in it else it["output"] for it in results]

    def configure(self, configuration, **more):
        """Configures a tenant; `None` takes the configuration away."""
        answer = self._ask({"do": "configure", "configuration": configuration, **more})
        if "failure" in answer:
            raise _failure(answer["failure"])

    def decide(self, command, state=None, payload=None, **more):
        """Asks for a decision, twice, since it has to be the same. Returns a list of `Event`, or raises `Rejected` or
        the `Failure`. `more`: aggregate, id, version, now_ms, tenant, actor, timeout_ms.
        """
        asked = {"do": "decide", "command": command, "state": state, "payload": payload, **more}
        answer = self._ask(asked)
        if "rejected" in answer:
            raise _failure(answer["rejected"], Rejected)
        if "failure" in answer:
            raise _failure(answer["failure"])
        return [Event(event["event"], event["data"]) for event in answer["events"]]

    def logged(self):
        """The lines that the plugin has logged so far, as the host shows them."""
        return list(self._log)

    def until_logged(self, text, within=20):
        """Waits for a line of the log with this text, and returns it."""
        ends = time.monotonic() + within
        while time.monotonic() < ends:
            found = next((line for line in self.logged() if text in line), None)
            if found is not None:
                return found
            time.sleep(0.01)
        raise AssertionError(f"the plugin does not log {text!r}, but: {self.logged()}")

    def stop(self, check=True):
        """Ends the plugin as the host does. Raises `AssertionError` if it does not end well."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            status = self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._close()
        if check and status != 0:
            raise AssertionError(f"exit status {status}: {self.logged()}")

    def _close(self):
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _ask(self, asked):
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(asked).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass
            answer = self._answers.get(timeout=asked.get("timeout_ms", 20_000) / 1000 + PATIENCE_S)
        if answer is None:
            self._process.wait()
            self._threads[1].join()
            raise AssertionError(f"the host has ended: {self.logged()}")
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer

    def _read_answers(self):
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def _read_log(self):
        for line in self._process.stderr:
            if len(self._log) < LINES_MAX:
                self._log.append(line.decode("utf-8", "replace").rstrip("\n"))


def _output(answer):
    if "failure" in answer:
        raise _failure(answer["failure"])
    return answer["output"]


def _failure(told, kind=Failure):
    why = kind(told["code"], told["message"], told.get("details"))
    why.temporary = told["temporary"]
    if "retry_after_ms" in told:
        why.retry_after = told["retry_after_ms"] / 1000
    return why


def _flexcore(verb, place, environment, arguments):
    # A name alone would be looked for among installed plugins.
    place = os.path.abspath(place)
    # The host hands nothing of its own environment on: `#!/usr/bin/env python3` has to find this Python.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    packages = os.pathsep.join(it for it in sys.path if it.endswith(("site-packages", "dist-packages")))
    told = {"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", packages), **environment}
    host = shutil.which(os.environ.get("FLEXCORE") or "flexcore")
    if host is None:
        raise AssertionError("there is no host: put `flexcore` on the PATH, or its path into FLEXCORE")
    line = [host, "plugin", verb, place]
    line += [f"--env={name}={value}" for name, value in told.items()]
    return line + [f"--arg={argument}" for argument in arguments]
