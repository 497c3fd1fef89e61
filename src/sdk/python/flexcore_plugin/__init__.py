"""Plugins of FlexCore in Python. An author writes functions and hands them to `run`:

    from flexcore_plugin import Failure, Plugin, run

    plugin = Plugin("greeter", "0.1.0", summary="Greets people.")

    @plugin.function(summary="Greets somebody.", idempotent=True)
    def greet(call):
        name = call.input["name"].strip()
        if not name:
            raise Failure("no_name", "Nobody can be greeted without a name.")
        return {"text": f"Hello, {name}!"}

    if __name__ == "__main__":
        run(plugin)

What is logged with `logging` is in the host's log, with its level and its `extra` fields. What is printed goes
there, too. Functions are called on threads, many at once: what they share takes a lock.
"""

from ._run import run
from .call import Call
from .decider import Event, Question
from .failure import Failure, Rejected
from .plugin import Plugin

__all__ = ["Call", "Event", "Failure", "Plugin", "Question", "Rejected", "run"]
