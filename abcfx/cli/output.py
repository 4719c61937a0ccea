"""Keeps the standard output of a `--json` command clean: models that print, also from C, print to stderr."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

from rich.console import Console

from abcfx.cli.shared import make_console

STDOUT, STDERR = 1, 2


@contextmanager
def command_console(as_json: bool) -> Iterator[Console]:
    """Yield the rich console that a command prints to.

    For JSON, what the command prints is collected and written to standard output when the block ends without an error,
    and everything that other code prints in the meantime goes to stderr.
    """
    if not as_json:
        yield make_console()
        return
    collected = io.StringIO()
    with stdout_to_stderr():
        yield make_console(collected)
    sys.stdout.write(collected.getvalue())
    sys.stdout.flush()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send everything that is printed within the block to stderr: by Python, by C code and by child processes."""
    _flush()
    saved = None
    with suppress(OSError):  # a process may run with one of the two closed
        saved = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if saved is not None:
            os.dup2(saved, STDOUT)
            os.close(saved)


def _flush() -> None:
    """Write out the buffers of Python and of C, so that earlier text does not land after a switch of stdout."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    with suppress(OSError, TypeError, AttributeError):  # no C library to be found, as on Windows
        ctypes.CDLL(None).fflush(None)
