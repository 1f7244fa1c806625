"""Run the tests of one module and print, as JSON, which passed and which lines they executed.

A script, started by `suite.py` as `traced.py FILE TEST_MODULE`; the current directory is where
the test module is imported from. A patch may turn a loop into an endless one, so each test may
execute `MAX_LINES` lines of the file: a limit in lines gives the same result on a slow machine as
on a fast one. What never comes to another line is left to the time limit of `suite.py`.
"""

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from types import CodeType

MAX_LINES = 20_000


class TooManyLines(BaseException):
    """Not an `Exception`, lest the module under test catches it."""


class LineTrace:
    """The lines of one file that have been executed (sys.monitoring, PEP 669)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines = []
        tool, line = sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE
        sys.monitoring.use_tool_id(tool, "traced")
        sys.monitoring.register_callback(tool, line, self._executed)
        sys.monitoring.set_events(tool, line)

    def take(self) -> set[int]:
        """Return the lines since the last call."""
        taken, self.lines = set(self.lines), []
        return taken

    def _executed(self, code: CodeType, line: int) -> object:
        if code.co_filename != self.path:
            return sys.monitoring.DISABLE
        self.lines.append(line)
        if len(self.lines) > MAX_LINES:
            raise TooManyLines
        return None


def main(path: str, test_module: str) -> None:
    """Run the test functions in the order of the file, each to its end, failure or limit."""
    sys.path.insert(0, "")
    trace = LineTrace(path)
    names = {}
    with suppress(Exception, TooManyLines):
        names = vars(importlib.import_module(test_module))
    imported = trace.take()  # what ran at import is part of every test
    results = []
    for name, test in names.items():
        if name.startswith("test_"):
            passed = passes(test)
            lines = sorted(imported | trace.take())
            results.append({"name": name, "passed": passed, "lines": lines})
    print(json.dumps(results))


def passes(test: Callable[[], None]) -> bool:
    """Tell whether the test returns."""
    with suppress(Exception, TooManyLines):
        test()
        return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
