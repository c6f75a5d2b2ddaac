"""A worker process: it imports the server's class and the handler's, and serves what it is sent, one after the other.

Lives here: what runs in the process that `_processes` starts, with `main()`. Must not: anything of the other side.

It ends when no more can come: the server's side of the channel is shut, or the server is gone, be it killed.
"""

from __future__ import annotations

import importlib
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types

from ._crossing import DONE, FAILED, READY, REASON_LIMIT, Frames
from ._executor import serve

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["main"]

#: What the main module of the program is called here, as multiprocessing calls it: not "__main__", so that what stands
#: under `if __name__ == "__main__":` does not run.
MAIN_NAME = "__mp_main__"


def main(descriptor: int) -> int:
    """Serve what comes on the channel until no more can; return the exit status."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    # Ctrl-C at a terminal reaches all processes, and is the server's to answer. A function, because "ignore" would be
    # inherited by what a handler starts. The server has blocked the signal until here.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    leaving = threading.Event()
    watch = threading.Thread(target=end_with_server, args=(channel, os.getppid(), leaving), daemon=True)
    watch.start()
    status = work(channel)
    leaving.set()
    try:
        channel.shutdown(socket.SHUT_RDWR)  # the server sees our end now, and grants us the time for exit handlers
    except OSError:  # it is gone
        pass
    channel.close()
    return status


def work(channel: socket.socket) -> int:
    """What the process is for; the exit status."""
    frames = Frames(channel)
    try:
        desk = Desk(frames)
    except BaseException:  # noqa: BLE001 - the server tells it
        import traceback

        reason = traceback.format_exc().encode(errors="replace")
        channel.sendall(FAILED + reason[-REASON_LIMIT:])
        return 1
    try:
        channel.sendall(READY)
        while desk.serve_next():
            channel.sendall(DONE)
    except (BrokenPipeError, ConnectionResetError):  # the server has no interest any more
        pass
    return 0


def end_with_server(channel: socket.socket, server: int, leaving: threading.Event) -> None:
    """End this process, whatever its handler is waiting for, when the server's process is gone or hangs up.

    Not if it is *leaving* anyway.

    That the server only sends no more is no hang-up: a request may still be served. PR_SET_PDEATHSIG would not do: its
    signal comes when the *thread* is gone that started this process.
    """
    poll = select.poll()
    poll.register(channel, 0)  # POLLHUP is always told
    if hasattr(os, "pidfd_open"):  # a forked child of the server may hold the channel open
        try:
            poll.register(os.pidfd_open(server), select.POLLIN)
        except OSError:  # it is gone, or the system does not let us
            pass
    if os.getppid() == server:
        poll.poll()
    if not leaving.is_set():
        os._exit(1)


class Desk:
    """Where requests arrive: the stand-in for the server, and the handler classes by name.

    Args:
        frames: whose first one tells what to import.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._found: dict[str, Any] = {}
        start = frames.next()
        if start is None:
            raise EOFError("the server is gone")
        told, _ = start
        sys.path[:] = told["path"]
        sys.argv[:] = told["argv"]
        if told["stands_in"]:
            importlib.import_module("compat._standin").install()
        if told["main"] is not None:
            import_main(*told["main"])
        self.server = stand_in(self._find(told["server"]), told["attributes"])
        self.server.RequestHandlerClass = self._find(told["handler"])
        if told["socket"] is not None:
            self.server.socket = received_socket(frames.descriptor(), *told["socket"])

    def _find(self, path: str) -> Any:
        if path not in self._found:
            module, _, name = path.partition(":")
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            self._found[path] = found
        return self._found[path]

    def serve_next(self) -> bool:
        """Wait for a request and serve it; False when none will come."""
        received = self._frames.next()
        if received is None:
            return False
        (handler, client_address, described), data = received
        if described is None:
            request: Any = (data, self.server.socket)
        else:
            request = received_socket(self._frames.descriptor(), *described)
        self.server.RequestHandlerClass = self._found.get(handler) or Late(self._find, handler)
        try:
            serve(self.server, request, client_address)
        except SystemExit:  # ends the request, as it does in a thread
            pass
        except BaseException:  # noqa: BLE001 - told, and no other request suffers from it
            sys.excepthook(*sys.exc_info())
        return True


class Late:
    """A handler class that is imported when it is called: where it fails the server's handle_error hears of it."""

    def __init__(self, find: Any, path: str) -> None:
        self._find = find
        self._path = path

    def __call__(self, *arguments: Any) -> Any:
        return self._find(self._path)(*arguments)


def received_socket(descriptor: int, family: int, kind: int, protocol: int, timeout: float | None) -> socket.socket:
    """The socket that was sent, described so that the system need not be asked."""
    sock = socket.socket(family, kind, protocol, fileno=descriptor)
    if not hasattr(socket, "MSG_CMSG_CLOEXEC"):
        sock.set_inheritable(False)
    if timeout is not None:
        sock.settimeout(timeout)
    return sock


def stand_in(kind: Any, attributes: dict[str, Any]) -> Any:
    """A server for the handlers here: hooks and attributes, and nothing that serves."""
    server = object.__new__(kind)
    vars(server).update(attributes)
    for name in ("serve_forever", "handle_request", "shutdown"):
        vars(server)[name] = refuse
    return server


def refuse(*_: object, **__: object) -> NoReturn:
    """Stands for what only the server itself can do."""
    raise RuntimeError(f"worker process {os.getpid()} only serves requests; the server is in process {os.getppid()}")


def import_main(how: str, where: str) -> None:
    """Import the program's main module once more, for the classes that it has."""
    servers: Any = importlib.import_module("compat.socketserver").BaseServer
    original = servers.__init__
    servers.__init__ = no_server  # for the time of the import
    module = types.ModuleType(MAIN_NAME)
    try:
        run = runpy.run_module if how == "name" else runpy.run_path
        module.__dict__.update(run(where, run_name=MAIN_NAME))
    finally:
        servers.__init__ = original
    sys.modules["__main__"] = sys.modules[MAIN_NAME] = module


def no_server(*_: object) -> NoReturn:
    """Stands for the constructor of servers while the main module is imported."""
    raise RuntimeError(
        "the program makes a server while a worker process imports it; put that, and what starts the program, under "
        'if __name__ == "__main__":'
    )
