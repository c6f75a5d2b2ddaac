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
    """Build the wheel and run the tests on it, in a folder without our sources; arguments go to pytest."""
    away = Path(session.create_tmp()).resolve()
    built, copy = away / "dist", away / "checkout"
    for old in (built, copy):
        shutil.rmtree(old, ignore_errors=True)
    session.install("build", *TEST)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), silent=True)
    session.install("--force-reinstall", *map(str, built.glob("*.whl")))

    unwanted = {"aserver", "compat", ".git", ".nox", ".venv"}  # only here: there is a tests/compat, too
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: unwanted if Path(folder) == ROOT else {"__pycache__"})
    session.chdir(copy)
    clean: dict[str, str | None] = {"PYTHONPATH": None}
    where = "import aserver, compat; print(aserver.__file__, compat.__file__, sep='\\n')"
    imported = str(session.run("python", "-c", where, env=clean, silent=True)).split()
    if strays := [file for file in imported if "site-packages" not in Path(file).parts]:
        session.error(f"not the wheel, but the checkout would be tested: {strays}")
    # what ruff and mypy say of the sources is no question to the wheel
    session.run("python", "-m", "pytest", "--ignore=tests/test_quality.py", *session.posargs, env=clean)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style with ruff."""
    session.install(*(tool for tool in TEST if tool.startswith("ruff")))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy, strictly, of all that pyproject.toml lists."""
    session.install("-e", ".", *TEST)
    session.run("mypy", "--strict", *CHECKED)


@nox.session(default=False)
def conformance(session: nox.Session) -> None:
    """Run other projects' checks: trio's and anyio's on our streams, CPython's on compat (see ASERVER_EXAM)."""
    session.install("-e", ".", *TEST)
    if any((ROOT / "tests" / "conformance").glob("test_*.py")):
        session.run("python", "-m", "pytest", "tests/conformance", env={"ASERVER_SUITES": "all"})
    else:
        session.warn("skipped: tests/conformance holds no tests")

    exam = os.environ.get("ASERVER_EXAM")
    runners = [Path(exam or "", name) for name in ("run_contract_exam.py", "run_stdlib_exam.py")]
    if not exam:
        session.warn(
            "skipped: socketserver's contract and CPython's own tests; ASERVER_EXAM names no folder of runners"
        )
    elif absent := [runner.name for runner in runners if not runner.is_file()]:
        session.warn(f"skipped: socketserver's contract and CPython's own tests; ASERVER_EXAM has no {absent}")
    elif not (ROOT / "compat" / "socketserver.py").is_file():
        session.warn("skipped: socketserver's contract and CPython's own tests; there is no compat/socketserver.py")
    else:
        contract, stdlib = map(str, runners)
        candidate = ["--module", "compat.socketserver", "--path", "."]
        python = str(session.run("python", "-c", "import sys; print(sys.executable)", silent=True)).strip()
        session.run("python", contract, *candidate, "--python", python)
        session.run("python", stdlib, *candidate)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run every example against a scripted client; arguments go to pytest."""
    session.install("-e", ".", *TEST)
    files = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").glob("test_examples*.py"))
    session.run("python", "-m", "pytest", *files, *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure, quickly by default; arguments replace those of `python -m benchmarks`."""
    session.install(".", *nox.project.dependency_groups(PROJECT, "bench"))
    session.run("python", "-m", "benchmarks", *(session.posargs or ["run", "--quick"]))


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Build sdist and wheel, and check what the package index would say of them."""
    built = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(built))
    session.run("twine", "check", "--strict", *map(str, sorted(built.iterdir())))
