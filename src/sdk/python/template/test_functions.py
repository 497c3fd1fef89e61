"""The plugin on the real host. FLEXCORE names the host; else it is the `flexcore` on the PATH."""

import pathlib
import subprocess
import sys
import unittest

from flexcore_plugin import Failure, testing

HERE = pathlib.Path(__file__).resolve().parent


class Greeting(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([sys.executable, "build.py"], cwd=HERE, check=True, stdout=subprocess.DEVNULL)

    def test_it_greets_as_configured(self):
        with testing.start(HERE) as plugin:
            plugin.configure({"greeting": "Good day"})
            self.assertEqual(plugin.call("greet", {"name": " Ada "}), {"text": "Good day, Ada!"})
            plugin.until_logged("greeting")

    def test_it_greets_without_a_configuration_but_not_without_a_name(self):
        with testing.start(HERE) as plugin:
            self.assertEqual(plugin.call("greet", {"name": "Ada"}), {"text": "Hello, Ada!"})
            with self.assertRaises(Failure) as raised:
                plugin.call("greet", {"name": " "})
            self.assertEqual(raised.exception.code, "no_name")

    def test_it_is_a_plugin(self):
        testing.conforms(HERE)


if __name__ == "__main__":
    unittest.main()
