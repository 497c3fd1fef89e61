"""The log on standard error, a JSON object a line, as hosts of go-plugin read it. The host stamps the time."""

import contextvars
import json
import logging
import os
import sys

# The variable that says from which level on is logged, such as `debug`.
LEVEL = "LOG_LEVEL"
# Longest text of one field, in characters: a host takes lines of 64 KiB.
FIELD_MAX = 8 * 1024
# Longest line, in bytes: what a host takes as one. A longer one has no fields.
LINE_BYTES_MAX = 60 * 1024

# The fields of the call that a thread works on.
fields = contextvars.ContextVar("fields", default=None)

_NAMES = [(logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug")]
# What every record has; anything else is an `extra` of the author's.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def to_stderr():
    """Logs to standard error from now on. Does nothing where the author has a log already."""
    root = logging.getLogger()
    if root.handlers:
        return
    root.addHandler(Lines())
    level = logging.getLevelName(os.environ.get(LEVEL, "info").upper())
    root.setLevel(level if isinstance(level, int) else logging.INFO)


class Lines(logging.Handler):
    """Writes each record with the fields of the call that it belongs to."""

    def emit(self, record):
        try:
            # One write, so that lines stay whole.
            sys.stderr.buffer.write(line_of(record))
            sys.stderr.buffer.flush()
        except Exception:
            # A log that cannot be written has nowhere to say so.
            pass


def line_of(record):
    """The line of a record, in bytes."""
    bare = {"@level": _level(record.levelno), "@message": _cut(record.getMessage()), "@module": record.name}
    line = dict(bare)
    line.update(fields.get() or {})
    own = vars(record).items()
    line.update((name, _plain(value)) for name, value in own if name not in _USUAL)
    if record.exc_info:
        # Its end says where it was raised.
        text = logging.Formatter().formatException(record.exc_info)
        line["traceback"] = text if len(text) <= FIELD_MAX else "…" + text[-FIELD_MAX:]
    data = _encoded(line)
    if len(data) >= LINE_BYTES_MAX:
        data = _encoded(bare)
    return data + b"\n"


def _encoded(line):
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")


def _level(number):
    return next((name for least, name in _NAMES if number >= least), "trace")


def _plain(value):
    if value is None or isinstance(value, (bool, int, float)):
        # JSON has no NaN and no Infinity.
        return value if not isinstance(value, float) or abs(value) < float("inf") else str(value)
    return _cut(str(value))


def _cut(text):
    return text if len(text) <= FIELD_MAX else text[:FIELD_MAX] + "…"
