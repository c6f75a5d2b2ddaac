"""CPython's own tests of what stands on `socketserver`, run unchanged with compat's module in its place.

The quick ones are part of the suite; the rest of them runs where ASERVER_SUITES is "all" (`nox -s conformance`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from ..programs import Program, write

#: Each quick, a few hundred tests altogether.
QUICK = ("test_socketserver", "test_httpservers", "test_wsgiref")
#: Of these some take a minute: they wait for time-outs.
SLOW = ("test_xmlrpc", "test_docxmlrpc", "test_logging", "test_robotparser", "test_urllib2_localnet", "test_imaplib")

RUNNER = """
    import socketserver
    import sys
    import unittest

    import compat.socketserver

    assert socketserver is compat.socketserver
    from test import support

    # by which this one means servers on the loopback interface, and others hosts that are far away
    support.use_resources = ["network"] if sys.argv[1] == "test_socketserver" else []

    def tests(suite):
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                yield from tests(test)
            # the one that looks for the classes by the name of their module, which they do not hide
            elif test.id() != "test.test_socketserver.MiscTestCase.test_all":
                yield test

    found = unittest.TestSuite(tests(unittest.defaultTestLoader.loadTestsFromName(f"test.{sys.argv[1]}")))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=0).run(found)
    print("passed" if result.wasSuccessful() and result.testsRun else "failed", flush=True)
"""


@pytest.mark.skipif(importlib.util.find_spec("test.test_socketserver") is None, reason="this Python has no `test`")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", QUICK + (SLOW if os.environ.get("ASERVER_SUITES") == "all" else ()))
def test_suite(name: str, tmp_path: Path) -> None:
    """CPython's own tests of a module that stands on socketserver pass on compat as they do on the original."""
    if importlib.util.find_spec(f"test.{name}") is None:
        pytest.skip(f"this Python has no test.{name}")
    runner = write(tmp_path / "runner.py", RUNNER)
    with Program(tmp_path, "-W", "default", "-m", "compat", runner, name) as program:
        lines = program.stdout.read().splitlines()
        assert lines[-1:] == ["passed"], "\n".join(lines[-60:])
        program.end()
