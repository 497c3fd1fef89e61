"""A call, as its function sees it."""

import logging
import threading
import time

# Longest time of a call, in seconds, whatever its caller says.
CALL_WAIT_MAX_S = 3_600
# Shortest time between two lines that say how far a call is, in seconds: a person reads them.
PROGRESS_PAUSE_S = 1

_log = logging.getLogger("flexcore_plugin")


class Call:
    """A call of a function: `input`, and on whose behalf it is made.

    `tenant`: whose data it is. Never mix what you keep for two tenants.
    `actor`: who caused it, as recorded.
    `idempotency_key`: the same for every attempt of this call, and for no other call.
    `traceparent`, `tracestate`: W3C Trace Context for requests that are made for this call; empty: none.
    `stop`: a `threading.Event` that is set when nobody waits for this call any more. Python cannot end a
    function from outside: one that may take long looks at it.
    """

    def __init__(self, input, context, stop, ends, configured, key=None):
        self.input = input
        self.tenant = context.tenant
        self.actor = context.actor
        self.idempotency_key = context.idempotency_key if key is None else key
        self.traceparent = context.traceparent
        self.tracestate = context.tracestate
        self.stop = stop
        self._ends = ends
        self._configured = configured
        self._progress = None

    @property
    def configuration(self):
        """What the tenant has configured, as the function behind `@plugin.configured` has made it.

        Raises the failure `not_configured` where there is none.
        """
        return self._configured.get(self.tenant)

    def remaining(self):
        """Seconds that the caller still waits; 0 when its time is over."""
        return max(self._ends - time.monotonic(), 0.0)

    def progress(self, done, of):
        """Logs how far the call is, once a second at most."""
        now = time.monotonic()
        if done >= of or self._progress is None or now - self._progress >= PROGRESS_PAUSE_S:
            self._progress = now
            _log.info("progress", extra={"done": done, "of": of})


def ends_of(context):
    """When the time of a call is over, on the monotonic clock."""
    return time.monotonic() + min(context.timeout_ms / 1000, CALL_WAIT_MAX_S)


def stop_of(rpc):
    """An event that is set when an RPC is over, for whatever reason."""
    stop = threading.Event()
    # Refused where it is over already.
    if not rpc.add_callback(stop.set):
        stop.set()
    return stop
