"""The gates that are not tests of behaviour: ruff and mypy, run here so that one command holds all of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: What is checked; the same list as `files` of [tool.mypy] in pyproject.toml.
CHECKED = ["aserver", "compat", "tests", "benchmarks", "examples", "noxfile.py"]


def content_with_us(name: str, *arguments: str) -> bool:
    """Run a tool of this interpreter's environment on the checkout, print what it says; skip if not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,  # the status is the answer
    )
    print(done.stdout)  # shown by pytest if the test fails
    return done.returncode == 0


def existing() -> list[str]:
    """What of the list is there, with Python files in it: an installed package's tests run without the packages."""
    return [name for name in CHECKED if (ROOT / name).is_file() or any((ROOT / name).glob("**/*.py"))]


def test_ruff_format() -> None:
    """The code is formatted as `ruff format` formats it."""
    assert content_with_us("ruff", "format", "--check", ".")


def test_ruff_check() -> None:
    """`ruff check` has nothing to say."""
    assert content_with_us("ruff", "check", ".")


@pytest.mark.timeout(300)  # the first run has no cache and reads every dependency
def test_mypy() -> None:
    """The types hold under `mypy --strict`, in the tests, benchmarks and examples as well."""
    assert content_with_us("mypy", *existing())
