"""`python -m compat`: run an unchanged program with our `socketserver` in the place of the standard library's.

    python -m compat [--children] script.py [argument …]
    python -m compat [--children] -m package [argument …]

Lives here: the command line. The program runs in the interpreter's own way (arguments, `sys.path`, `__main__`, exit
status, tracebacks), because it is the interpreter that runs it: started anew, with a folder on PYTHONPATH whose
`sitecustomize` puts our module in place before anything can import the other one. That is in `_standin`.
"""

from __future__ import annotations

import os
import subprocess
import sys

from ._standin import environment

USAGE = """\
usage: python -m compat [--children] SCRIPT [ARGUMENT ...]
       python -m compat [--children] -m MODULE [ARGUMENT ...]

Run an unchanged program with compat's socketserver in the place of the standard library's.
What follows SCRIPT or MODULE is the program's own.

  --children  in the Python processes that the program starts, too
  -h, --help  show this text\
"""
#: Exit status for arguments that are wrong, the interpreter's own.
WRONG_USAGE = 2


def main() -> int:
    """Read our options, then become the program; return the exit status if that is not possible."""
    arguments = sys.argv[1:]
    children = False
    while arguments and arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option == "--help":
            print(USAGE)
            return 0
        if option != "--children":
            return wrong(f"unknown option {option!r}")
        children = True
    if arguments[:1] == ["-h"]:
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
    return become([sys.executable, *interpreter_options(), *arguments], environment(children))


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
