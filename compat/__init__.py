"""The classic `socketserver` API: `from compat import socketserver`, or `import compat as socketserver`."""

from __future__ import annotations

from . import socketserver
from .socketserver import *  # noqa: F403 - the names are the module's of this Python, whichever they are

__all__ = ["socketserver"]
__all__ += socketserver.__all__
