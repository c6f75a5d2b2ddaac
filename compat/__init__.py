"""The classic `socketserver` API: `from compat import socketserver`, or `import compat as socketserver`.

Beside it are the servers of `compat.executors`, by their names: `from compat import ThreadPoolTCPServer`.
`compat.hosted` makes a handler for the servers of `aserver` of a legacy handler class.
"""

from __future__ import annotations

from . import socketserver
from .socketserver import *  # noqa: F403 - the names are the module's of this Python, whichever they are

TYPE_CHECKING = False  # executors are imported by those who ask for one: see `_waiting`
if TYPE_CHECKING:
    from typing import Any

    from .executors import ExecutorMixIn as ExecutorMixIn
    from .executors import ExecutorTCPServer as ExecutorTCPServer
    from .executors import ExecutorUDPServer as ExecutorUDPServer
    from .executors import ExecutorUnixDatagramServer as ExecutorUnixDatagramServer
    from .executors import ExecutorUnixStreamServer as ExecutorUnixStreamServer
    from .executors import ProcessPoolMixIn as ProcessPoolMixIn
    from .executors import ProcessPoolTCPServer as ProcessPoolTCPServer
    from .executors import ProcessPoolUDPServer as ProcessPoolUDPServer
    from .executors import ProcessPoolUnixDatagramServer as ProcessPoolUnixDatagramServer
    from .executors import ProcessPoolUnixStreamServer as ProcessPoolUnixStreamServer
    from .executors import ThreadPoolMixIn as ThreadPoolMixIn
    from .executors import ThreadPoolTCPServer as ThreadPoolTCPServer
    from .executors import ThreadPoolUDPServer as ThreadPoolUDPServer
    from .executors import ThreadPoolUnixDatagramServer as ThreadPoolUnixDatagramServer
    from .executors import ThreadPoolUnixStreamServer as ThreadPoolUnixStreamServer
    from .hosting import hosted as hosted

__all__ = []
__all__ += socketserver.__all__

#: The beginnings of the names that `executors` has for servers.
_BY_EXECUTOR = ("Executor", "ProcessPool", "ThreadPool")
#: What else of the module programs use as `socketserver.…`.
_PRIVATE = ("_NoThreads", "_ServerSelector", "_SocketWriter", "_Threads", "__version__")


def __getattr__(name: str) -> Any:
    """The servers of `executors` and hosted(), imported when asked for; and the module's private names."""
    if name in _PRIVATE:
        return getattr(socketserver, name)
    if name.startswith(_BY_EXECUTOR) and name.endswith(("MixIn", "Server")):
        from . import executors

        if name in executors.__all__:
            return getattr(executors, name)
    if name == "hosted":
        from .hosting import hosted

        return hosted
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the standard library's module, and `socketserver`; those of `executors` are not among them."""
    return sorted({*socketserver.__all__, "__all__", "__doc__", "__name__", "socketserver"})
