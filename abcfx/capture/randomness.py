"""Refuse forwards that make random numbers into Python values, which a graph would freeze, and find the line."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, cast

import torch
from torch.overrides import TorchFunctionMode

from abcfx.capture.dispatch import AtenOp, CallWatcher
from abcfx.capture.generators import same_state, state_of
from abcfx.errors import CaptureError, UncapturableError
from abcfx.support import trees
from abcfx.support.location import frame_line, is_user_file

if TYPE_CHECKING:
    from _typeshed import TraceFunction

_ADVICE = (
    "draw with torch and keep both ways in the graph: keep = x.new_empty(()).bernoulli_(1 - p), then "
    "x + keep * branch(x), or torch.where(keep > 0, a, b).\n"
    "  Or draw nothing where p is 0 (if p > 0 and ...), plan with p = 0 and apply='inplace', and set p back: in place "
    "the model's own forward runs on"
)
_LIBRARIES = {*sys.stdlib_module_names, "numpy"} - {"__main__"}
_TORCH = "torch, outside of its factory functions"
# Calls of torch that draw random numbers, by name.
_DRAWS = frozenset(
    (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli"),
        *("multinomial", "poisson", "binomial", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"),
        *("geometric_", "cauchy_", "log_normal_"),
    )
)
# Calls that make a tensor's value a Python value.
_READS = frozenset(("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__"))


class DrawnInPython(UncapturableError):
    """The error that forward draws random numbers in Python, which no way of capturing can keep.

    Attributes:
        used: names of the generators that they are drawn from, as the message has them.
    """

    def __init__(self, used: tuple[str, ...], line: str = "", *, model: str = "") -> None:
        self.used = used
        subject = f"{model} cannot be captured: forward" if model else "forward"
        where = f":\n    {line}" if line else "."
        super().__init__(
            f"{subject} draws random numbers from {' and '.join(used)}{where}\n"
            f"  A graph would repeat the same ones for ever.\n  To fix: {_ADVICE}.",
            line,
        )


@contextmanager
def no_hidden_randomness(generators: Mapping[str, object], *, torch_too: bool = False) -> Iterator[None]:
    """Refuse a forward that draws random numbers which a capture would freeze into the graph.

    Args:
        generators: generators that the model has of its own, by path.
        torch_too: refuse draws from torch's generator as well, for a capture that does not see torch's draws.

    Raises:
        DrawnInPython: a generator of Python, of NumPy or of the model's own was used within the block.
        CaptureError: torch's was.
    """
    watched = _watched(generators) | ({_TORCH: torch.default_generator} if torch_too else {})
    before = {name: state_of(each) for name, each in watched.items()}
    draws = _Draws()
    with draws if torch_too else nullcontext():
        yield
    used = tuple(name for name, each in watched.items() if not same_state(before[name], state_of(each)))
    if not draws.seen and threading.active_count() > 1:
        used = tuple(name for name in used if name != _TORCH)  # another thread drew: the generator is one for all
    if used == (_TORCH,):
        raise CaptureError(f"forward draws random numbers from {_TORCH}; a graph would repeat the same ones for ever")
    if used:
        raise DrawnInPython(used)


class _Draws(CallWatcher):
    """A torch mode that finds out whether this thread draws random numbers with torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def watch(self, op: AtenOp, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run an aten call and return its result; if it draws random numbers, the mode keeps that in a flag."""
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in op.tags
        return op(*args, **kwargs)


def refuse_own_generators(values: object) -> None:
    """Raise if there is a generator among the arguments of a call of torch: a graph cannot hold one."""
    if any(isinstance(leaf, torch.Generator) for leaf in trees.leaves(values)):
        line = _line_now()
        raise UncapturableError(
            f"forward draws random numbers from a torch.Generator of its own, which no graph can hold:\n    {line}\n"
            f"  To fix: draw from torch's default generator, with generator=None.",
            line,
        )


def _watched(generators: Mapping[str, object]) -> dict[str, object]:
    """Return the random generators whose use in forward is looked for, by the names that messages give them."""
    found: dict[str, object] = {"Python's random": random._inst}
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        found["numpy.random"] = numpy_random.mtrand._rand
    return found | {f"the generator {path}": each for path, each in generators.items()}


class DrawFinder:
    """Finds the line of a user's code that draws random numbers, by looking at the generators after every line.

    Args:
        used: the generators to look at, by the names that the error `DrawnInPython` has for them.
        generators: generators that the model has of its own, by path.

    Attributes:
        line: the first line that drew, as "path/file.py:12: text"; "" so far if none did.
    """

    def __init__(self, used: tuple[str, ...], generators: Mapping[str, object]) -> None:
        self.line = ""
        self._generators = [each for name, each in _watched(generators).items() if name in used]
        self._states = [state_of(each) for each in self._generators]
        self._last: tuple[FrameType, int] | None = None

    def run(self, call: Callable[[], object]) -> None:
        """Run a call while the generators are compared after every line; whatever the call raises is dropped."""
        before = sys.gettrace()
        sys.settrace(cast("TraceFunction", self._enter))
        try:
            call()
        except Exception:  # the call is made again because it failed, in whatever way
            pass
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        return None if self.line or not _is_users(frame) else self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        """Compare the generators after a line of code; if one was used, store the line that ran last as the cause.

        Python calls this for each line, as a trace function.
        """
        if self.line:
            return None
        states = [state_of(each) for each in self._generators]
        if self._last is not None and not all(map(same_state, states, self._states)):
            self.line = frame_line(*self._last)
        at = frame.f_back if event == "return" else frame
        self._states, self._last = states, (at, at.f_lineno) if at is not None and _is_users(at) else None
        return self._step


def _is_users(frame: FrameType) -> bool:
    """Whether a Python frame runs code that a user could edit, and that is neither NumPy nor part of Python."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in _LIBRARIES and is_user_file(frame.f_code.co_filename)


def line_of_drawn_value(call: Callable[[], object]) -> str:
    """Return the line at which a call turns a random draw of torch's into a Python value; "" if it does not.

    A number or branch such as `torch.rand(1).item() < p` is one; the same of values that depend on inputs is not.
    """
    watch = _DrawnValues()
    try:
        with watch:
            call()
    except Exception:  # the user's forward may raise anything, and it is not asked for that here
        pass
    return watch.line


def _line_now() -> str:
    """Return the innermost line of a user's code that is running; "" if none is."""
    frame = sys._getframe(1)
    while not _is_users(frame):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return frame_line(frame, frame.f_lineno)


def values_drawn(model: str, line: str) -> UncapturableError:
    """Return the error that forward turns a random draw of torch's into a Python value at a line."""
    return UncapturableError(
        f"{model} cannot be captured: forward makes a random draw into a Python value, or branches on it:\n    {line}\n"
        f"  A graph holds tensors and takes one way only.\n  To fix: {_ADVICE}.",
        line,
    )


class _DrawnValues(TorchFunctionMode):
    """A torch mode that knows which tensors come from random draws alone, and keeps the first line that reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.line = ""
        self._drawn: dict[int, torch.Tensor] = {}  # the tensors are kept, so that no id comes twice

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Make a call and return its result; keep which results come from random draws alone, and where one is read."""
        name = getattr(func, "__name__", "")
        given = trees.tensors((args, kwargs))
        drawn = bool(given) and all(id(tensor) in self._drawn for tensor in given)
        if drawn and name in _READS and not self.line:
            self.line = _line_now()
        out = func(*args, **(kwargs or {}))
        if drawn or (name in _DRAWS and (not given or name.endswith(("_", "_like")))):
            self._drawn.update((id(tensor), tensor) for tensor in trees.tensors(out))
        return out


class DefaultGenerator(TorchFunctionMode):
    """A torch mode that drops `generator=None` from draws: with it torch takes no size that is traced."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run a call of torch, without its argument `generator` if that is None."""
        if kwargs and kwargs.get("generator", 0) is None:
            kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
        return func(*args, **(kwargs or {}))
