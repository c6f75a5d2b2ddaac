"""The command line: options and variables become the arguments of a server, a target becomes a server, `run` serves it.

Lives here: reading options, importing the target, and the words for what is wrong with either. Must not live here: any
default or bound that a room below has (they are read from its dataclass or signature), and serving. The only room that
prints. Nobody imports it but `__main__` and the installed command.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from ._errors import ListenerFailedError, ServerStateError, TargetError, printable
from ._limits import Limits
from ._run import backend_options, run_servers
from ._server import DEFAULT_BACKLOG, DEFAULT_GRACE, StreamServer

__all__ = ["main"]

#: Where a handler is served when no endpoint is given: the port of the examples in socketserver's documentation, for
#: this machine only.
DEFAULT_ENDPOINT = "tcp://127.0.0.1:9999"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: The dataclasses of which every field is an option, by the name of the server's argument that they are.
FIELDS_OF = {"limits": Limits}

_DESCRIPTION = "Serve an async function or a handler class on TCP and Unix sockets."
_EPILOG = f"""\
target:
  An async function of the stream, a handler class, a server, or with --factory a function without arguments that
  makes one of these. A module is looked for in the working directory, too; a file's own folder is on its path.

endpoints:
  tcp://127.0.0.1:9999   tcp://[::1]:0   tcp://*:9999   unix:./x.sock?mode=660   unix:@abstract   fd://3
  Port 0 takes any free one. Each address is printed as soon as it listens. Without endpoints: {DEFAULT_ENDPOINT}

signals:
  SIGINT (Ctrl-C) and SIGTERM stop accepting and let open connections finish; a second one ends at once.

exit status:
  0  all connections had ended by themselves      2  the target, an address or an option is wrong
  1  some had to be cancelled or reset, or all sockets of the server failed, or the target's own code raised

The variable in brackets sets the same as the option; the option wins; an empty variable counts as unset.
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option and its variable.

    Args:
        name: as in --name.
        convert: text to value; a ValueError says what is wrong with it.
        default: the value when nobody says anything, and the one whose text --help shows.
        metavar: what stands for the value; empty for a switch.
        help: the text for --help, without default and variable.
    """

    name: str
    convert: Callable[[str], Any]
    default: Any
    metavar: str
    help: str

    @property
    def key(self) -> str:
        """Its name as an identifier."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets the same."""
        return f"ASERVER_{self.key.upper()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (by default the process's own); return the exit status."""
    try:
        return _serve(arguments)
    except TargetError as exc:
        print(f"aserver: error: {' '.join(str(exc).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before run() had the signals, or in the target's own code: die of it, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        return 128 + signal.SIGINT


def _serve(arguments: Sequence[str] | None) -> int:
    options = _options()
    given = _parser(options).parse_intermixed_args(arguments)
    chosen = _chosen(options, given, os.environ)
    target = _load(given.target)
    if chosen["factory"]:
        target = _made_by(given.target, target)
    loop = chosen["loop"]
    if ":" in loop:
        loop = _load(loop)
    with _usage_error(ValueError, TypeError, ModuleNotFoundError):
        backend = backend_options(chosen["backend"], loop)
    server = _server(given, target, chosen, [option for option in options if getattr(given, option.key) is not None])
    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT, level=chosen["log_level"].upper())
    logging.getLogger("aserver").setLevel(chosen["log_level"].upper())
    return _run(server, chosen, backend)


def _run(server: StreamServer, chosen: Mapping[str, Any], backend: dict[str, Any]) -> int:
    listening = False

    def report(server: StreamServer) -> None:
        nonlocal listening
        listening = True
        _print_addresses(server)

    try:
        run_servers([server], chosen["backend"], backend, chosen["grace"], report)
    except ListenerFailedError:  # the server has logged it
        return 1
    except (OSError, ValueError, ServerStateError) as exc:
        if listening:
            raise
        raise TargetError(exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc))
    return 0


def _print_addresses(server: StreamServer) -> None:
    try:
        for endpoint in server.endpoints:
            print(f"listening on {endpoint}", flush=True)
    except OSError:  # whoever read our output is gone (aserver | head): no reason not to serve
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays, so that the interpreter's last flush succeeds


# --- options ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Any:
        raise TargetError(f"{message}; see aserver --help")


def _options() -> list[Option]:
    """All options that have a variable; those of the dataclasses are made of their fields."""
    options = [
        Option("factory", _switch, False, "", "the target is a function without arguments that makes what is served"),
        Option("backend", str, "asyncio", "NAME", "asyncio or trio"),
        Option("loop", str, "auto", "NAME", "on asyncio: auto (uvloop if installed), asyncio, uvloop, module:factory"),
        Option("grace", _number(float, True), DEFAULT_GRACE, "SECONDS", "for open connections to end; none: for ever"),
        Option("backlog", _number(int, False), DEFAULT_BACKLOG, "N", "connections that may wait in the kernel"),
        Option("reuse-port", _switch, False, "", "let several processes listen on the same TCP port"),
        Option("log-level", _level, "info", "LEVEL", ", ".join(LOG_LEVELS)),
    ]
    for group in FIELDS_OF.values():
        types_of = get_type_hints(group)
        for field in fields(group):
            kinds = get_args(types_of[field.name]) or (types_of[field.name],)
            kind = float if float in kinds else int
            convert = _checked(group, field.name, _number(kind, types.NoneType in kinds))
            default = None if field.default is MISSING else field.default
            options.append(Option(field.name.replace("_", "-"), convert, default, "N", field.metadata["help"]))
    return options


def _parser(options: list[Option]) -> _Parser:
    parser = _Parser(
        prog="aserver",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="module:name or path/to/file.py:name")
    parser.add_argument("endpoints", metavar="ENDPOINT", nargs="*", help="where a handler is served; see below")
    parser.add_argument("--version", action="version", version=f"aserver {_version()}")
    for option in options:
        shown = "none" if option.default is None else option.default
        default = "" if "(default" in option.help or not option.metavar else f" (default: {shown})"
        how: dict[str, Any] = {"metavar": option.metavar, "type": _for_argparse(option.convert)}
        if not option.metavar:
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{option.name}", help=f"{option.help}{default} [{option.variable}]", **how)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("aserver-net")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "(not installed, so of no known version)"


def _chosen(options: list[Option], given: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    """What each option is set to: by the command line, else by its variable, else by default."""
    chosen = {}
    for option in options:
        value = getattr(given, option.key)
        text = environment.get(option.variable, "")
        if value is None and text:
            try:
                value = option.convert(text)
            except ValueError as exc:
                raise TargetError(f"environment variable {option.variable}: {exc}")
        elif value is None:
            chosen[option.key] = option.default
            continue
        chosen[option.key] = value
    return chosen


def _for_argparse(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc))

    return converted


def _number(kind: type[int] | type[float], may_be_none: bool) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if may_be_none and text.lower() == "none":
            return None
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{text!r} is not {what}{' and not none' if may_be_none else ''}")

    return convert
