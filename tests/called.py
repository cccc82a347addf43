"""Commands called in the process of the test, and what a refusal by one looks like."""

from collections.abc import Callable
from typing import Any

from bwds.cli import command

Outcome = tuple[Any, str, str]
"""Exit code, stdout and stderr."""


def outcome(capsys, run: Callable[..., Any], *arguments: Any) -> Outcome:
    """What ``run(*arguments)`` returns or exits with, and what it writes."""
    try:
        code = run(*arguments)
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def call(capsys, *arguments: str) -> Outcome:
    """Of the command ``bwds`` with these arguments."""
    return outcome(capsys, command.main, list(arguments))


def assert_refused(result: Outcome, *parts: str) -> None:
    """One error on stderr, with these parts, and exit code 2."""
    code, _, err = result
    assert code == 2
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
