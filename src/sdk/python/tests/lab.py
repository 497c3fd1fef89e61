#!/usr/bin/env python3
"""A plugin for tests of the package. With the argument `broken` it has two functions of one name; with `early`
it prints something before its first line. CALLS_AT_ONCE says how many calls it works on at once."""

import asyncio
import logging
import os
import sys
import threading
import time

from flexcore_plugin import Event, Failure, Plugin, Rejected, run

plugin = Plugin("lab", "0.1.0", summary="For tests.", calls_at_once=int(os.environ.get("CALLS_AT_ONCE", "64")))
# What is no `Exception`.
BEYOND = {"cancelled": asyncio.CancelledError, "interrupted": KeyboardInterrupt, "left": SystemExit}
log = logging.getLogger("lab")
busy_now, busy_most, busy_lock = 0, 0, threading.Lock()

if "early" in sys.argv:
    print("printed early")


@plugin.configured(schema={"type": "object"})
def made(settings):
    if settings["url"] == "s3cr3t":
        raise ValueError(settings["url"])
    if settings["url"] in BEYOND:
        raise BEYOND[settings["url"]]
    # Slower than what is configured after it.
    time.sleep(settings.get("wait", 0))
    if not settings["url"].startswith("https://"):
        raise Failure("no_https", "only https is allowed")
    return settings["url"][len("https://") :]


@plugin.function(summary="As it came.", idempotent=True)
def echo(call):
    return call.input


@plugin.function
def about(call):
    return {
        "tenant": call.tenant,
        "actor": call.actor,
        "key": call.idempotency_key,
        "trace": call.traceparent,
        "remaining_ms": int(call.remaining() * 1000),
    }


@plugin.function
def settings(call):
    return call.configuration


@plugin.function
def sleep(call):
    """Milliseconds, unless nobody waits any more."""
    log.info("sleep has begun")
    call.stop.wait(call.input / 1000)
    log.info("sleep has ended")


@plugin.function
def hang(call):
    """Whatever happens."""
    time.sleep(3_600)


@plugin.function(at_once=4)
def busy(call):
    """The most calls that were under way at once."""
    global busy_now, busy_most
    with busy_lock:
        busy_now += 1
        busy_most = max(busy_most, busy_now)
    time.sleep(0.002)
    with busy_lock:
        busy_now -= 1
        return busy_most


@plugin.function(name="panic")
def panics(call):
    raise KeyError("s3cr3t, as asked")


@plugin.function
def beyond(call):
    raise BEYOND[call.input]("s3cr3t")


@plugin.function
def leave(call):
    sys.exit("not from here")


@plugin.function
def fail(call):
    code, pause_ms = call.input["code"], call.input.get("pause_ms")
    details = {"why": "a test"}
    if pause_ms is None:
        raise Failure(code, "as asked", details=details)
    raise Failure.passing(code, "as asked", retry_after=pause_ms / 1000, details=details)


@plugin.function(name="log")
def logs(call):
    log.warning("one\ntwo", extra={"count": 3, "name_of": "x"})
    log.debug("too much")
    print("printed")


@plugin.function(output_schema={"type": "integer"})
def wrong(call):
    return "no integer"


@plugin.function
def no_json(call):
    return {"set": set()} if call.input == "set" else float(call.input)


@plugin.function
def big(call):
    return "x" * call.input


@plugin.function(input_schema={"maximum": 9})
def small(call):
    return call.input


@plugin.function
def crash(call):
    os._exit(7)


@plugin.decider
def decide(question):
    """A counter up to ten."""
    count = question.state or 0
    if question.command == "add":
        by = question.payload
        if count + by > 10:
            raise Rejected("too_many", "ten at most")
        return [Event("added", {"by": by})]
    if question.command == "nothing":
        return []
    if question.command == "panic":
        raise RuntimeError("as asked")
    if question.command in BEYOND:
        raise BEYOND[question.command]
    if question.command == "wrong":
        return "no list"
    raise Failure("unknown_command", question.command)


if "broken" in sys.argv:
    plugin.function(echo)

if __name__ == "__main__":
    run(plugin)
