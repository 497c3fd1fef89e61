"""Why something was not done."""

import re

from . import _contract, _json, _limits

_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")


def is_word(text):
    """True for names of functions and codes of failures."""
    return isinstance(text, str) and _WORD.match(text) is not None


class Failure(Exception):
    """Raised by a function: it was not done, and trying again is in vain.

    `code` is a stable word for programs (`[a-z][a-z0-9_]{0,39}`). `message` is a sentence for people, without
    secrets: it is logged and recorded. `details` is JSON with more for programs.
    """

    temporary = False

    def __init__(self, code, message, details=None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details
        self.retry_after = None

    @classmethod
    def passing(cls, code, message, retry_after=None, details=None):
        """The same may succeed later, after `retry_after` seconds: an outage, a full disk, a rate limit."""
        failure = cls(code, message, details)
        failure.temporary = True
        failure.retry_after = retry_after
        return failure


class Rejected(Failure):
    """Raised by a decider: the rules say no."""


def message_of(failure):
    """The message of the contract. What the contract does not allow becomes the failure `broken_answer`."""
    fault, details = None, b""
    if not is_word(failure.code):
        fault = f"{str(failure.code)[:40]!r} is no code of a failure ([a-z][a-z0-9_]{{0,39}})"
    elif failure.details is not None:
        try:
            details = _json.write(failure.details)
        except _json.NotJson as error:
            fault = f"its details are no JSON: {error}"
        if len(details) > _limits.DETAILS_BYTES_MAX:
            fault = f"details of {len(details)} bytes are over the limit of {_limits.DETAILS_BYTES_MAX}"
    pause_ms = 0
    if failure.temporary and failure.retry_after is not None:
        try:
            pause_ms = min(max(int(failure.retry_after * 1000), 0), 2**63)
        except (TypeError, ValueError, OverflowError):
            fault = fault or "its retry_after is no number of seconds"
    if fault:
        return broken(fault)
    return _contract.FailureMessage(
        code=failure.code,
        message=cut(failure.message),
        temporary=bool(failure.temporary),
        retry_after_ms=pause_ms,
        details=details,
    )


def broken(fault):
    """The failure in place of an answer that breaks the contract."""
    text = f"the plugin broke the contract: {fault}"
    return _contract.FailureMessage(code="broken_answer", message=cut(text))


def raised(error):
    """The failure for an exception of the plugin's code; without its text, which may have anything in it."""
    text = f"the plugin's code raised {type(error).__name__}; its log says where"
    return _contract.FailureMessage(code="internal", message=cut(text))


def cut(message, bytes_max=_limits.FAILURE_MESSAGE_BYTES_MAX):
    """A text for people, of so many bytes at most."""
    data = str(message).encode("utf-8", "replace")
    if len(data) > bytes_max:
        end = "…".encode()
        data = data[: bytes_max - len(end)].decode("utf-8", "ignore").encode() + end
    return data.decode()
