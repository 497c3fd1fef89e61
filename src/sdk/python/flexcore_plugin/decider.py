"""Deciding on commands of aggregates."""

from . import _json
from .failure import Failure


class Question:
    """A command that waits for its decision, and the aggregate before it.

    `aggregate`, `id`: whose command it is. `version`: of the aggregate, 0 before its first event.
    `command`, `command_id`: its name and id. `tenant`, `actor`: whose aggregate it is, and who sent it.
    `now_ms`: when it was taken up, in milliseconds since 1970-01-01 UTC: the only clock of a decision.
    """

    def __init__(self, message):
        self.aggregate = message.aggregate
        self.id = message.id
        self.version = message.version
        self.command = message.command
        self.command_id = message.command_id
        self.tenant = message.context.tenant
        self.actor = message.context.actor
        self.now_ms = message.now_ms
        self._state = message.state
        self._payload = message.payload

    @property
    def state(self):
        """The aggregate's state, read anew each time; `None` before its first event."""
        return self._read("state", self._state)

    @property
    def payload(self):
        """What the command says, read anew each time."""
        return self._read("payload", self._payload)

    @staticmethod
    def _read(what, data):
        try:
            return _json.read(data)
        except _json.NotJson as error:
            raise Failure("invalid_question", f"the {what}: {error}") from None


class Event:
    """Something that happened: its name, as the aggregate declares it, and its data."""

    def __init__(self, event, data=None):
        self.event = event
        self.data = data

    def __repr__(self):
        return f"Event({self.event!r}, {self.data!r})"

    def __eq__(self, other):
        return isinstance(other, Event) and (self.event, self.data) == (other.event, other.data)

    __hash__ = None
