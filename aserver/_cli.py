"""The command line: options and variables become the arguments of a server, a target becomes a server, `run` serves it.

Lives here: the options, and the words for what is wrong with them. Must not live here: serving, importing the target,
and what a room below knows already (the fields of the limits are read from their dataclass). The only room that prints.
Nobody imports it but `__main__` and the installed command.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from ._addresses import kind_of
from ._errors import ListenerFailedError, ServerStateError, TargetError
from ._handlers import DatagramRequestHandler
from ._lifecycle import DEFAULT_GRACE, BaseServer
from ._limits import Limits, Sessions
from ._multicast import parse_groups
from ._run import backend_options, run_servers
from ._server import DEFAULT_BACKLOG, DatagramServer, StreamServer
from ._target import load, made_by

__all__ = ["main"]

#: Where a handler is served when no endpoint is given: the port of the examples in socketserver's documentation, for
#: this machine only; the second one if the handler can be for datagrams only.
DEFAULT_ENDPOINT = "tcp://127.0.0.1:9999"
DEFAULT_DATAGRAM_ENDPOINT = "udp://127.0.0.1:9999"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: The dataclasses of which every field is an option, by the name of the server's argument that they are.
GROUPS = {"limits": Limits, "session_limits": Sessions}
#: The options that are for one kind of server only.
_DATAGRAM_LIMITS = ("max_in_flight", "max_in_flight_size", "max_datagram_size", "max_amplification")
FOR_STREAMS = ("backlog", *(each.name for each in fields(Limits) if each.name not in _DATAGRAM_LIMITS))
FOR_SESSIONS = tuple(each.name for each in fields(Sessions))
FOR_DATAGRAMS = ("groups", "broadcast", "sessions", *FOR_SESSIONS, *_DATAGRAM_LIMITS)

_DESCRIPTION = "Serve an async function or a handler class on TCP, UDP and Unix sockets."
_EPILOG = f"""\
TARGET is module:name or path/to/file.py:name. The name is that of an async
function of the stream or datagram, of a handler class, of a server, or with
--factory of a function without arguments that makes one of these; it may have
dots in it. Modules are looked for in the working directory, too; what a file
imports is looked for in its own folder.

ENDPOINT is tcp://127.0.0.1:9999, tcp://[::1]:0, tcp://*:9999, fd://3,
unix:./my.sock?mode=660 or unix:@abstract, and for datagrams udp://... and
unixgram:...; if there is none, it is {DEFAULT_ENDPOINT}. Port 0 is
any free one. Each address is printed as soon as it listens. All of them are
for connections, or all for datagrams. A server brings its own addresses and
limits.

The variable in brackets sets the same as its option. The option wins; an
empty variable counts as unset.

SIGINT (Ctrl-C) and SIGTERM stop accepting and let open requests end; a
second one ends the process at once. The exit status is
  0  when all requests have ended by themselves;
  1  when some had to be cancelled or reset, when all sockets of the server
     failed, or when the target's own code raised;
  2  when the target, an address or an option is wrong.

for example:
  aserver upper.py:Upper tcp://127.0.0.1:9999 unix:./upper.sock
  aserver --loop asyncio --grace 5 mypackage.services:echo tcp://*:7
  aserver --groups 239.1.2.3%eth0 discovery.py:answer udp://*:9999
"""


@dataclass(frozen=True)
class Option:
    """One option and its environment variable.

    Args:
        name: as in --name.
        convert: text to value; what it raises says what is wrong with the text.
        default: its value when nobody says anything.
        metavar: what stands for the value in --help; empty for a switch.
        help: the text for --help, without the variable and mostly without the default.
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
    """Do what the command line says (by default the process's own); return the exit status."""
    try:
        return _serve(arguments)
    except TargetError as exc:
        print(f"aserver: error: {' '.join(str(exc).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # in the target's code, before run() has the signals: die of it, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise  # where that does not end a process


def _serve(arguments: Sequence[str] | None) -> int:
    options = _options()
    given = _parser(options).parse_intermixed_args(arguments)
    chosen = _chosen(options, vars(given), os.environ)
    target = load(given.target)
    if chosen["factory"]:
        target = made_by(given.target, target)
    loop = load(chosen["loop"]) if ":" in chosen["loop"] else chosen["loop"]
    try:
        backend = backend_options(chosen["backend"], loop)
    except (ValueError, TypeError) as exc:
        raise TargetError(str(exc))
    server = _server(target, given, chosen)
    # Now, so that a target that has configured logging keeps what it has.
    level = chosen["log_level"].upper()
    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT, level=level)
    logging.getLogger("aserver").setLevel(level)
    return _run(server, chosen, backend)


def _run(server: BaseServer[Any], chosen: Mapping[str, Any], backend: dict[str, Any]) -> int:
    listening = False

    def on_listening(server: BaseServer[Any]) -> None:
        nonlocal listening
        listening = True
        _print_addresses(server)

    try:
        run_servers([server], chosen["backend"], backend, chosen["grace"], on_listening)
    except ListenerFailedError:  # the server has logged it
        return 1
    except (OSError, ValueError, ServerStateError) as exc:
        if listening:
            raise
        raise TargetError(exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc))
    return 0


def _print_addresses(server: BaseServer[Any]) -> None:
    try:
        for endpoint in server.endpoints:
            print(f"listening on {endpoint}", flush=True)
    except OSError:  # whoever read our output has gone (aserver ... | head): no reason not to serve
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _server(target: Any, given: argparse.Namespace, chosen: Mapping[str, Any]) -> BaseServer[Any]:
    if isinstance(target, BaseServer):
        _check_nothing_in_vain(given)
        return target
    name = given.target
    if isinstance(target, type) and issubclass(target, BaseServer):
        raise TargetError(f"{name!r} is a class of servers; name a server, or with --factory a function that makes one")
    groups = {
        argument: group(**{each.name: chosen[each.name] for each in fields(group)})
        for argument, group in GROUPS.items()
    }
    arguments: dict[str, Any] = {"limits": groups["limits"], "reuse_port": chosen["reuse_port"]}
    datagrams = _wants_datagrams(given.endpoints, target)
    for key in FOR_STREAMS if datagrams else FOR_DATAGRAMS:
        if key in vars(given):
            kinds = "connections" if datagrams else "datagrams"
            raise TargetError(f"--{key.replace('_', '-')} is for {kinds}, and these are not; leave it out")
    for key in () if chosen["sessions"] else FOR_SESSIONS:
        if key in vars(given):
            raise TargetError(f"--{key.replace('_', '-')} is for sessions; leave it out, or add --sessions")
    try:
        if datagrams:
            arguments |= {"broadcast": chosen["broadcast"], "groups": chosen["groups"]}
            arguments["sessions"] = groups["session_limits"] if chosen["sessions"] else None
            return DatagramServer(given.endpoints or [DEFAULT_DATAGRAM_ENDPOINT], target, **arguments)
        return StreamServer(given.endpoints or [DEFAULT_ENDPOINT], target, backlog=chosen["backlog"], **arguments)
    except ValueError as exc:
        raise TargetError(str(exc))
    except TypeError as exc:
        makes = inspect.isroutine(target) and not inspect.iscoroutinefunction(target)
        raise TargetError(f"{name!r} cannot be served: {exc}{'; use --factory if it makes one' if makes else ''}")


def _wants_datagrams(endpoints: Sequence[str], target: object) -> bool:
    """Whether the endpoints, or without any the handler class, are for datagrams."""
    kinds = {kind for endpoint in endpoints if (kind := kind_of(endpoint) or _kind_of_descriptor(endpoint)) is not None}
    if len(kinds) > 1:
        shown = ", ".join(endpoints)
        raise TargetError(f"{shown}: some are for connections, some for datagrams; run aserver once for each kind")
    if kinds:
        return kinds == {socket.SOCK_DGRAM}
    return isinstance(target, type) and issubclass(target, DatagramRequestHandler)


def _kind_of_descriptor(endpoint: str) -> int | None:
    number = endpoint.removeprefix("fd://")
    if number == endpoint or not number.isdecimal():
        return None
    try:
        sock = socket.socket(fileno=int(number))
    except (OSError, OverflowError):  # no socket: binding it says so
        return None
    try:
        return sock.type
    finally:
        sock.detach()


def _check_nothing_in_vain(given: argparse.Namespace) -> None:
    """Refuse what a server as target would not heed."""
    if given.endpoints:
        raise TargetError(f"{given.target!r} is a server with its own addresses; leave out {given.endpoints[0]!r}")
    for key in (*FOR_STREAMS, *FOR_DATAGRAMS, "reuse_port"):
        if key in vars(given):
            option = f"--{key.replace('_', '-')}"
            raise TargetError(f"{given.target!r} is a server with its own limits; leave out {option}")


# --- options ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise TargetError(f"{message}; see aserver --help")


def _options() -> list[Option]:
    """All options that have a variable; those of the dataclasses are made of their fields."""
    options = [
        Option("factory", _switch, False, "", "TARGET is a function without arguments that makes what is served"),
        Option("backend", _backend, "asyncio", "NAME", "asyncio or trio"),
        Option("loop", _loop, "auto", "NAME", "auto (uvloop where it is installed), asyncio, uvloop or module:factory"),
        Option("grace", _number(float, 0, none=True), DEFAULT_GRACE, "SECONDS", "for open connections to end, or none"),
        Option("backlog", _number(int, 1), DEFAULT_BACKLOG, "N", "connections that may wait in the kernel"),
        Option("reuse-port", _switch, False, "", "let several processes listen on one TCP or UDP port"),
        Option("groups", _groups, (), "GROUPS", "multicast groups to join, such as 239.1.2.3%eth0,ff02::fb%eth0"),
        Option("broadcast", _switch, False, "", "let datagrams be sent to broadcast addresses"),
        Option("sessions", _switch, False, "", "the handler is for sessions: a peer's datagrams, in order"),
        Option("log-level", _level, "info", "LEVEL", ", ".join(LOG_LEVELS)),
    ]
    for group in GROUPS.values():
        hints = get_type_hints(group)
        for each in fields(group):
            kinds = get_args(hints[each.name]) or (hints[each.name],)
            number = _number(float if float in kinds else int, none=NoneType in kinds)
            default = None if each.default is MISSING else each.default
            name, text = each.name.replace("_", "-"), each.metadata["help"]
            options.append(Option(name, _checked(group, each.name, number), default, "N", text))
    return options


def _parser(options: list[Option]) -> _Parser:
    parser = _Parser(
        prog="aserver",
        usage="aserver [OPTION ...] TARGET [ENDPOINT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="what to serve: module:name or path/to/file.py:name")
    parser.add_argument("endpoints", metavar="ENDPOINT", nargs="*", default=[], help="where to serve it")
    parser.add_argument("--version", action="version", version=f"aserver {_version()}", help="print it and exit")
    for option in options:
        shown = f"{option.default:g}" if isinstance(option.default, float) else option.default
        default = "" if not option.metavar or "default" in option.help or shown == () else f" (default: {shown})"
        how: dict[str, Any] = {"metavar": option.metavar, "type": _for_argparse(option.convert)}
        if not option.metavar:
            how = {"action": argparse.BooleanOptionalAction}
        text = f"{option.help}{default} [{option.variable}]".replace("%", "%%")
        parser.add_argument(f"--{option.name}", help=text, **how)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("aserver-net")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "of no known version: it is not installed"


def _chosen(options: list[Option], given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What each option is set to: by the command line, else by its variable, else by default."""
    chosen = {}
    for option in options:
        chosen[option.key] = given.get(option.key, option.default)
        if option.key not in given and (text := environment.get(option.variable)):
            try:
                chosen[option.key] = option.convert(text)
            except (ValueError, TypeError, ModuleNotFoundError) as exc:
                raise TargetError(f"the environment variable {option.variable} is wrong: {exc}")
    return chosen


def _for_argparse(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, TypeError, ModuleNotFoundError) as exc:
            raise argparse.ArgumentTypeError(str(exc))

    return converted


def _number(kind: type[int] | type[float], least: int | None = None, *, none: bool = False) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if none and text.lower() == "none":
            return None
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or number != number:  # NaN is not equal to itself
            remedy = f"write for example {least or 10}{', or none' if none else ''}"
            raise ValueError(f"{text!r} is no {'whole ' if kind is int else ''}number; {remedy}")
        if least is not None and number < least:
            raise ValueError(f"{text!r} is too small; it must be at least {least}")
        return number

    return convert


def _checked(group: type, name: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let the dataclass itself judge the value, so that its bounds are written once."""

    def checked(text: str) -> Any:
        value = convert(text)
        group(**{name: value})
        return value

    return checked


def _switch(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither on nor off; write 1 or 0")
    return words[text.lower()]


def _groups(text: str) -> tuple[str, ...]:
    groups = tuple(group.strip() for group in text.split(","))
    parse_groups(groups)
    return groups


def _level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise ValueError(f"{text!r} is no log level; write one of {', '.join(LOG_LEVELS)}")
    return text.lower()


def _backend(text: str) -> str:
    backend_options(text, "auto")
    return text


def _loop(text: str) -> str:
    if ":" not in text:
        backend_options("asyncio", text)
    return text
