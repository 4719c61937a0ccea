"""Change torch and models for a while, in one thread at a time, and undo it in every case.

Tracing patches classes of torch and takes a model's weights out, both of which every thread of the process sees. So
whoever does it holds one lock, and what is to be undone stands on a stack, which is emptied before the lock is
released. Ctrl-C is held back until then, or until `interrupt_if_asked`, since torch's own code that runs within does
not bear it: the process may end. A second Ctrl-C is not held back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_lock = threading.RLock()


class _Changes(threading.local):
    """A stack, one for each thread, of the temporary changes to torch or to models that are still to be undone."""

    def __init__(self) -> None:
        self.open: list[Undo] = []


_changes = _Changes()


class Undo:
    """A context that makes a temporary change, for example to a class of torch, on entry and undoes it on exit.

    If the exit is never reached, the end of the outermost function that `one_at_a_time` decorates undoes it.

    Args:
        undo: puts everything back; it may be called twice.
        do: makes the change, if it is not the block that does.
    """

    def __init__(self, undo: Callable[[], object], do: Callable[[], object] | None = None) -> None:
        self.undo = undo
        self.do = do

    def __enter__(self) -> None:
        """Put this temporary change on the stack of those to be undone, then make it."""
        _changes.open.append(self)
        if self.do is not None:
            self.do()

    def __exit__(self, *exception: object) -> None:
        """Undo this temporary change and all later ones in the block; do nothing if it has been undone already."""
        for depth, change in enumerate(_changes.open):
            if change is self:
                _unwind(depth)
                return


def one_at_a_time(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that changes torch or a model for a while: one thread at a time runs it.

    What it has not undone at its end is undone then. Functions with this decorator may call one another.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Wait until no other thread runs such a function, run this one, and undo the changes that it left."""
        with _lock, _interrupts_held():
            depth = len(_changes.open)
            try:
                return function(*args, **kwargs)
            finally:
                try:
                    _unwind(depth)
                except BaseException:  # an interrupt that was not held back, within the undoing itself
                    _unwind(depth)
                    raise

    return call


def interrupt_if_asked() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed while it was held back; called where an interrupt does no harm."""
    if threading.current_thread() is threading.main_thread() and _held.asked:
        _held.asked = False
        _held.deliver()


class _Held:
    """State of a Ctrl-C that is held back while torch is patched: whether one came, and what it would have done.

    Attributes:
        asked: whether there was one.
        handler: what Python calls for a Ctrl-C that is not held back; None while none is held back.
    """

    asked = False
    handler: Callable[[int, FrameType | None], object] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a Ctrl-C while it is held back: store the first one in `asked`, and let a second one through.

        Python calls this as a signal handler, with the number of the signal and the frame that was interrupted.
        """
        if self.asked:
            self.deliver()
        self.asked = True

    def deliver(self) -> None:
        """Do what a Ctrl-C would have done at once, which mostly is to raise KeyboardInterrupt."""
        if self.handler is not None:
            self.handler(signal.SIGINT, None)


_held = _Held()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back within the block, and raise KeyboardInterrupt at its end if there was one.

    Python calls signal handlers in the main thread alone: in other threads, and in a nested block, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or _held.handler is not None or not callable(before):
        yield
        return
    try:
        _held.asked, _held.handler = False, before
        signal.signal(signal.SIGINT, _held.note)
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        asked, _held.asked, _held.handler = _held.asked, False, None
        if asked:
            before(signal.SIGINT, None)


def _unwind(depth: int) -> None:
    """Undo the temporary changes at positions `depth` and above of the thread's stack, the last one first."""
    while len(_changes.open) > depth:
        _changes.open[-1].undo()
        _changes.open.pop()
