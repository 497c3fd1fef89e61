"""What each tenant has configured: in memory alone, and swapped as a whole."""

import itertools
import logging
import threading
import traceback

from . import _json, failure

# Most tenants with a configuration: with 1 KiB each it is 64 MiB.
TENANTS_MAX = 65_536

_log = logging.getLogger("flexcore_plugin")


class Configured:
    """The configurations of all tenants. One that cannot be used is kept as the reason."""

    def __init__(self, make=None):
        self._make = make
        self._of = {}
        # The last one of each tenant that is being made, by its number: an older one comes too late.
        self._making = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def set(self, tenant, data):
        """Takes a tenant's configuration in place of the former, which may still be in the making. Returns a message
        of a failure, or `None`.
        """
        is_null = bytes(data).strip(b" \t\r\n") == b"null"
        if self._make is None:
            if is_null:
                return None
            refused = failure.Failure("no_configuration", "this plugin takes no configuration")
            return failure.message_of(refused)
        if is_null:
            with self._lock:
                self._making.pop(tenant, None)
                self._of.pop(tenant, None)
            return None
        with self._lock:
            number = self._making[tenant] = next(self._numbers)
        # Outside of the lock: it is the author's code.
        made, why = self._made(data)
        with self._lock:
            if self._making.get(tenant) != number:
                text = "a later configuration of this tenant has taken its place"
                return failure.message_of(failure.Failure.passing("overtaken", text))
            del self._making[tenant]
            if tenant not in self._of and len(self._of) >= TENANTS_MAX:
                full = failure.Failure.passing("too_many_tenants", "too many tenants are configured")
                return failure.message_of(full)
            self._of[tenant] = (made, why)
        return why and failure.message_of(why)

    def _made(self, data):
        try:
            return self._make(_json.read(data)), None
        except _json.NotJson as error:
            return None, failure.Failure("bad_configuration", f"the configuration: {error}")
        except failure.Failure as why:
            return None, why
        except BaseException as error:
            # Without its text: there may be a secret in it.
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = {"raised": type(error).__name__, "at": f"{at.filename}:{at.lineno}"}
            _log.error("the function behind configured() raised", extra=where)
            said = failure.raised(error)
            return None, failure.Failure(said.code, said.message)

    def get(self, tenant):
        """What was made of it. Raises a `Failure` where there is none."""
        found = self._of.get(tenant)
        if found is None:
            raise failure.Failure("not_configured", "the plugin is not configured")
        made, why = found
        if why is not None:
            # A copy: many threads would write their tracebacks into the one.
            again = failure.Failure(why.code, why.message, why.details)
            again.temporary, again.retry_after = why.temporary, why.retry_after
            raise again
        return made
