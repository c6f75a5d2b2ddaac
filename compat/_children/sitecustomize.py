"""Imported by an interpreter that `python -m compat` has started: puts our `socketserver` in place."""

import os
import sys

if sys.version_info >= (3, 11):  # noqa: UP036 - an older interpreter may be among the children
    here = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
    sys.path.insert(0, here)  # the program may be elsewhere, and compat not installed
    try:
        from compat._standin import take_place
    finally:
        sys.path.remove(here)
    take_place()
