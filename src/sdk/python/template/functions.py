"""A plugin of FlexCore."""

import logging

from flexcore_plugin import Failure, Plugin

# `build.py` has it run, in greeter.pyz.
plugin = Plugin("greeter", "0.1.0", summary="Greets people.")
log = logging.getLogger("greeter")


@plugin.configured(
    schema={
        "type": "object",
        "required": ["greeting"],
        "properties": {"greeting": {"type": "string"}},
    }
)
def settings(configuration):
    """What `call.configuration` is: here the greeting alone."""
    return configuration["greeting"]


@plugin.function(
    summary="Greets somebody.",
    input_schema={
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}},
    },
    output_schema={
        "type": "object",
        "required": ["text"],
        "properties": {"text": {"type": "string"}},
    },
    idempotent=True,
)
def greet(call):
    name = call.input["name"].strip()
    if not name:
        raise Failure("no_name", "Nobody can be greeted without a name.")
    log.info("greeting", extra={"who": name})
    try:
        greeting = call.configuration
    except Failure:
        # It greets for tenants that have configured nothing, too.
        greeting = "Hello"
    return {"text": f"{greeting}, {name}!"}
