"""Sessions for nox: `nox` runs the gates on the Python it runs on, `nox --list` shows what else there is.

The Pythons are those of the classifiers in pyproject.toml. Interpreters outside of PATH are found through
ASERVER_PYTHONS, a list of folders (written like PATH) with `python3.x` in them; those that are missing are named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
CHECKED = PROJECT["tool"]["mypy"]["files"]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

extra = os.environ.get("ASERVER_PYTHONS", "")
os.environ["PATH"] = os.pathsep.join(filter(None, [extra, os.environ.get("PATH", "")]))


def works(python: str) -> bool:
    """Whether an interpreter is here and starts: the stand-ins of version managers may do only the first."""
    path = shutil.which(python)
    return path is not None and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


PROMISED = nox.project.python_versions(PROJECT)
PYTHONS = [version for version in PROMISED if version == RUNNING or works(f"python{version}")]
if MISSING := [version for version in PROMISED if version not in PYTHONS]:
    print(f"noxfile: Python {', '.join(MISSING)} not found here, skipped (see ASERVER_PYTHONS)", file=sys.stderr)

nox.needs_version = ">=2025.2.9"
nox.options.sessions = [f"tests-{RUNNING}", "lint", "typing"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True  # PYTHONS holds only those that are here


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on each Python found; arguments go to pytest."""
    session.install("-e", ".", *TEST)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and hold the coverage above its floor; arguments go to pytest."""
    session.install("-e", ".", *TEST)
    session.run("python", "-m", "pytest", "--cov", "--cov-report=term", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Run the tests on the installed wheel, in a folder without our sources; arguments go to pytest."""
    away = Path(session.create_tmp()).resolve()
    built, copy = away / "dist", away / "tree"
    for old in (built, copy):
        shutil.rmtree(old, ignore_errors=True)
    session.install("build", *TEST)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), silent=True)
    session.install("--no-deps", "--force-reinstall", *map(str, built.glob("*.whl")))
    session.install("aserver-net", "--no-index", "--find-links", str(built)) if False else None
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("aserver", "compat", ".*", "__pycache__"))
