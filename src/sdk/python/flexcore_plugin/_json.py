"""JSON as the host reads and writes it: UTF-8, no NaN, no endless numbers."""

import json

# Python reads longer numbers in quadratic time, or not at all.
_DIGITS_MAX = 4_300


class NotJson(ValueError):
    """Text that is no JSON, or a value that cannot be JSON. Its text quotes neither."""


def _whole(digits):
    if len(digits) > _DIGITS_MAX:
        raise NotJson("a number is too long")
    return int(digits)


def _constant(_):
    raise NotJson("there are no NaN and no Infinity in JSON")


def read(data):
    """The value of some bytes."""
    try:
        return json.loads(
            bytes(data).decode("utf-8"), parse_int=_whole, parse_constant=_constant
        )
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJson(f"{where}: it is no JSON") from None
    except UnicodeDecodeError:
        raise NotJson("it is not UTF-8") from None
    except RecursionError:
        raise NotJson("it is nested too deeply") from None


def write(value):
    """The bytes of a value."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotJson("a text has half a character in it") from None
    except RecursionError:
        raise NotJson("it is nested too deeply, or in itself") from None
    except (TypeError, ValueError) as error:
        # The type's name alone may be quoted: `Object of type set is not JSON serializable`.
        why = str(error) if isinstance(error, TypeError) else "it has a value that JSON has not"
        raise NotJson(why) from None
