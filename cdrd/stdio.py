"""Holds the three streams that whoever starts a program gives it: one that is missing is /dev/null.

The rule that must stay true: no file or socket of ours ever becomes descriptor 0, 1 or 2. What is
printed would go into it.
"""

import contextlib
import io
import os
import sys
from typing import Final

STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_missing() -> None:
    """Open /dev/null in place of what is closed; before anything else is opened."""
    for descriptor, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            # It is the lowest number that is free; those whom we start are to have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def escape_unencodable() -> None:
    """Print as an escape what the locale's encoding has not; data goes out as bytes, in UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Drop what cannot be written, so that Python's own flush at exit does not complain of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
