"""`python -m compat`: run an unchanged program with our `socketserver` in the place of the standard library's.

    python -m compat [option …] script.py [argument …]
    python -m compat [option …] -m package [argument …]

Lives here: the command line. The program runs in the interpreter's own way (arguments, `sys.path`, `__main__`, exit
status, tracebacks), because it is the interpreter that runs it: started anew, with a folder on PYTHONPATH whose
`sitecustomize` puts our module in place before anything can import the other one. That is in `_standin`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from ._imposed import BOUNDED, NAMES, written
from ._standin import environment

USAGE = """\
usage: python -m compat [OPTION ...] SCRIPT [ARGUMENT ...]
       python -m compat [OPTION ...] -m MODULE [ARGUMENT ...]

Run an unchanged program with compat's socketserver in the place of the standard library's.
What follows SCRIPT or MODULE is the program's own.

  --children         in the Python processes that the program starts, too
  --executor NAME    where the handlers of all its servers run, whatever they are made for:
                       inline       in the thread that serves, one after the other
                       threads      a fresh thread for each request
                       thread-pool  reused threads, which keep their thread-local state
                       processes    worker processes, which import the handler by name
  --max-workers N    how many threads or processes a pool has at most
  -h, --help         show this text\
"""
#: Exit status for arguments that are wrong, the interpreter's own.
WRONG_USAGE = 2


def main() -> int:
    """Read our options, then become the program; return the exit status if that is not possible."""
    arguments = sys.argv[1:]
    try:
        options = read_options(arguments)
    except ValueError as error:
        return wrong(str(error))
    if options.help:
        print(USAGE)
        return 0
    if not arguments:
        return wrong("no program given: a script, or -m with a module")
    if arguments[0].startswith("-") and arguments[0] not in ("-m", "-c", "-"):
        return wrong(f"unknown option {arguments[0]!r}; options of the interpreter stand before -m compat")
    if arguments == ["-m"]:
        return wrong("-m without the name of a module")
    if sys.flags.ignore_environment or sys.flags.no_site:
        return wrong("works through PYTHONPATH and sitecustomize, which the interpreter's options -I, -E and -S forbid")
    return become([sys.executable, *interpreter_options(), *arguments], environment(options.children, options.executor))


class Options(NamedTuple):
    """What stands before the program."""

    children: bool = False
    executor: str = ""
    help: bool = False


def read_options(arguments: list[str]) -> Options:
    """Take our options off the front of *arguments*.

    Raises:
        ValueError: one of them is wrong.
    """
    children = False
    values: dict[str, str] = {}
    while arguments and (arguments[0].startswith("--") or arguments[0] == "-h"):
        option, _, value = arguments.pop(0).partition("=")
        if option in ("-h", "--help"):
            return Options(help=True)
        if option == "--children" and not value:
            children = True
        elif option in ("--executor", "--max-workers"):
            if not value and not arguments:
                raise ValueError(f"{option} without a value")
            values[option] = value or arguments.pop(0)
        else:
            raise ValueError(f"unknown option {option!r}")
    return Options(children, read_executor(values.get("--executor"), values.get("--max-workers")))


def read_executor(name: str | None, number: str | None) -> str:
    """The two options for the executor as one word; "" if there are none.

    Raises:
        ValueError: one of them is wrong, or they do not go together.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"unknown executor {name!r}; there are {', '.join(NAMES)}")
    if number is not None:
        if name not in BOUNDED:
            raise ValueError(f"--max-workers is for --executor {' and '.join(BOUNDED)}")
        if not number.isascii() or not number.isdigit() or int(number) < 1:
            raise ValueError(f"--max-workers is {number!r}; it takes a number, 1 or more")
    return "" if name is None else written(name, None if number is None else int(number))


def wrong(what: str) -> int:
    """Say what is wrong."""
    print(f"python -m compat: {what}\n{USAGE}", file=sys.stderr)
    return WRONG_USAGE


def interpreter_options() -> list[str]:
    """What stands between the interpreter's name and `-m compat`, such as `-X dev`: it is meant for the program."""
    head = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    if head and head[-1] == "compat":
        head.pop()
        last = head.pop() if head else ""
    else:
        last = head.pop().removesuffix("compat") if head else ""
    if not last.startswith("-") or not last.endswith("m"):  # started in another way, by a debugger for instance
        return []
    return head + ([last[:-1]] if len(last) > 2 else [])  # "-um" is "-u" and "-m"


def become(command: list[str], variables: dict[str, str]) -> int:
    """Run *command* in the place of this process; where the system cannot do that, beside it, and return its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, variables)
    return subprocess.call(command, env=variables)


if __name__ == "__main__":
    sys.exit(main())
