"""The lab on the real host, by the package's own kit. FLEXCORE names the host."""

import os
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from flexcore_plugin import Event, Failure, Rejected, testing  # noqa: E402

LAB = HERE / "lab.py"
# The package is beside it, and in no file that it is in.
WITH_PACKAGE = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}


class OnTheHost(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.plugin = testing.start(LAB, WITH_PACKAGE)

    @classmethod
    def tearDownClass(cls):
        cls.plugin.stop()

    def failed(self, code, ask, kind=Failure):
        with self.assertRaises(kind) as raised:
            ask()
        self.assertEqual(raised.exception.code, code)
        return raised.exception

    def test_it_says_what_it_is(self):
        told = self.plugin.description
        self.assertEqual((told["name"], told["decides"]), ("lab", True))
        echo = told["functions"][0]
        self.assertEqual((echo["name"], echo["idempotent"]), ("echo", True))

    def test_functions(self):
        self.assertEqual(self.plugin.call("echo", ["é", None]), ["é", None])
        about = self.plugin.call("about", tenant="acme", actor="ann", key="k1")
        self.assertEqual((about["tenant"], about["actor"], about["key"]), ("acme", "ann", "k1"))
        why = self.failed("busy", lambda: self.plugin.call("fail", {"code": "busy", "pause_ms": 1_500}))
        self.assertEqual((why.temporary, why.retry_after, why.details), (True, 1.5, {"why": "a test"}))
        why = self.failed("internal", lambda: self.plugin.call("panic"))
        self.assertNotIn("s3cr3t", why.message)
        self.plugin.until_logged("panic raised")
        self.plugin.call("log")
        self.assertIn("warning: lab: one", self.plugin.until_logged("warning: lab: one"))
        self.plugin.until_logged("printed")

    def test_what_the_host_refuses_is_an_error_of_the_test(self):
        for function, given, said in [
            ("small", 10, "the host would refuse this input"),
            ("wrong", None, "breaks its own schema"),
        ]:
            with self.assertRaises(AssertionError) as raised:
                self.plugin.call(function, given)
            self.assertIn(said, str(raised.exception))

    def test_a_late_call_is_told_to_end(self):
        with self.assertRaises(AssertionError):
            self.plugin.call("sleep", 60_000, timeout_ms=300)
        self.plugin.until_logged("sleep has ended")

    def test_batches(self):
        numbers = list(range(3_000))
        self.assertEqual(self.plugin.stream("echo", numbers), numbers)
        failed = self.plugin.stream("panic", numbers[:3])
        self.assertEqual([why.code for why in failed], ["internal"] * 3)

    def test_configurations(self):
        self.failed("not_configured", lambda: self.plugin.call("settings"))
        self.plugin.configure({"url": "https://a"})
        self.assertEqual(self.plugin.call("settings"), "a")
        self.failed("not_configured", lambda: self.plugin.call("settings", tenant="other"))
        self.failed("no_https", lambda: self.plugin.configure({"url": "http://a"}))
        self.failed("no_https", lambda: self.plugin.call("settings"))
        self.plugin.configure(None)
        self.failed("not_configured", lambda: self.plugin.call("settings"))

    def test_decisions(self):
        self.assertEqual(self.plugin.decide("add", None, 3), [Event("added", {"by": 3})])
        self.assertEqual(self.plugin.decide("nothing", 1), [])
        self.failed("too_many", lambda: self.plugin.decide("add", 9, 2), Rejected)
        self.failed("unknown_command", lambda: self.plugin.decide("remove", 1))


class Other(unittest.TestCase):
    def test_it_does_what_every_plugin_has_to_do(self):
        testing.conforms(LAB, WITH_PACKAGE)

    def test_what_is_no_plugin_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            script = pathlib.Path(folder) / "script"
            script.write_text("#!/bin/sh\nexit 0\n")
            script.chmod(0o755)
            with self.assertRaises(AssertionError) as raised:
                testing.start(script)
            self.assertIn("did not start", str(raised.exception))
            with self.assertRaises(AssertionError):
                testing.conforms(script)

    def test_a_plugin_that_dies_is_told(self):
        plugin = testing.start(LAB, WITH_PACKAGE)
        with self.assertRaises(AssertionError):
            plugin.call("crash")
        with self.assertRaises(AssertionError):
            plugin.stop()


if __name__ == "__main__":
    unittest.main()
