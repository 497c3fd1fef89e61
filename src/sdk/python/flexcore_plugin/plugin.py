"""What an author says a plugin is."""

import inspect
import json

from . import _contract, _limits
from ._configured import Configured
from .failure import is_word

# Calls of one stream that a function works on at once, unless it says another number: they wait for others
# most of the time.
AT_ONCE = 16
# Calls that a plugin works on at once, unless it says another number: what a manifest says where it says nothing.
CALLS_AT_ONCE = 64


class Function:
    """A function of a plugin, and what the host is told of it."""

    def __init__(self, run, described, at_once):
        self.run = run
        self.described = described
        self.at_once = at_once


class Plugin:
    """A plugin: its functions, its configuration, its decider. Name and version are for people.

    `calls_at_once`: no less than `concurrency` in plugin.yaml; more calls are refused for now. A function that goes
    on when its caller has given up keeps its place: when all are taken, the plugin is not well, and the host starts
    it again.
    """

    def __init__(self, name, version, summary="", calls_at_once=CALLS_AT_ONCE):
        if calls_at_once < 1:
            raise ValueError("calls_at_once is less than 1")
        self.calls_at_once = calls_at_once
        self.name = name
        self.version = version
        self.summary = summary
        self.functions = {}
        self.decide = None
        self.configurations = Configured()
        self._configuration_schema = ""

    def function(
        self,
        run=None,
        *,
        name=None,
        summary="",
        input_schema=None,
        output_schema=None,
        idempotent=False,
        at_once=AT_ONCE,
    ):
        """A decorator: the function is called with a `Call`, on a thread, and returns JSON or raises a `Failure`.

        `name`: `[a-z][a-z0-9_]{0,39}`, the function's own unless given. `summary`: one sentence.
        `input_schema`, `output_schema`: JSON Schemas (2020-12), as JSON or as text. The host checks inputs. It shows
        callers the schema of outputs, and does not check these; tests with `flexcore_plugin.testing` do.
        `idempotent`: the same call again, under the same idempotency key, does nothing that the first did not
        do. Without it a call of unknown outcome is never repeated.
        `at_once`: calls of one stream that are worked on at once.
        """

        def add(run):
            _no_coroutine(run)
            called = name or run.__name__
            if not is_word(called):
                raise ValueError(f"{called!r} is no name of a function ([a-z][a-z0-9_]{{0,39}})")
            if called in self.functions:
                raise ValueError(f"it has two functions called {called!r}")
            if at_once < 1:
                raise ValueError(f"at_once of {called!r} is less than 1")
            described = {
                "name": called,
                "summary": summary,
                "input_schema": _schema(f"of the input of {called!r}", input_schema),
                "output_schema": _schema(f"of the output of {called!r}", output_schema),
                "idempotent": idempotent,
            }
            self.functions[called] = Function(run, described, at_once)
            return run

        return add if run is None else add(run)

    def configured(self, schema):
        """A decorator: the function makes of a tenant's configuration what `call.configuration` is.

        The configuration is JSON that fits the schema (2020-12): the host checks it first. `"writeOnly": true`
        in it marks a secret. The function has to return soon. A `Failure` that it raises is the answer to
        calls of this tenant, until it is configured otherwise.
        """

        def add(make):
            _no_coroutine(make)
            self._configuration_schema = _schema("of the configuration", schema)
            self.configurations = Configured(make)
            return make

        return add

    def decider(self, decide):
        """A decorator: the function decides on commands. It is called with a `Question`, and returns a list of
        `Event`, or raises `Rejected`; any other `Failure` says that it cannot decide.

        The same question has to have the same answer: no clock, no chance, no effect, and nothing that is kept
        from one question to the next.
        """
        _no_coroutine(decide)
        self.decide = decide
        return decide

    def description(self):
        """All that the host is told. Raises `ValueError` where it breaks the contract."""
        if not self.name:
            raise ValueError("the plugin has no name")
        if len(self.functions) > _limits.FUNCTIONS_MAX:
            raise ValueError(f"more than {_limits.FUNCTIONS_MAX} functions")
        made = _contract.Description(
            name=self.name,
            version=self.version,
            summary=self.summary,
            functions=[function.described for function in self.functions.values()],
            configuration_schema=self._configuration_schema,
            decides=self.decide is not None,
        )
        if made.ByteSize() > _limits.DESCRIPTION_BYTES_MAX:
            raise ValueError(f"a description of more than {_limits.DESCRIPTION_BYTES_MAX} bytes")
        return made


def _no_coroutine(function):
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__name__} is async; functions of a plugin are called on threads")


def _schema(what, schema):
    """A schema's text."""
    if schema is None:
        return ""
    text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the schema {what} is no JSON: {error}") from None
    if not isinstance(read, (dict, bool)):
        raise ValueError(f"the schema {what} is no JSON object")
    return text
