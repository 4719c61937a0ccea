"""Leave the model, Python's garbage collection and torch's loggers exactly as they were before a capture."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from abcfx.capture.python_state import Snapshot, same_numbers
from abcfx.support.undo import Undo

# Loggers of torch that print a traceback before it is raised.
_LOGGERS = (
    "torch.export",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.recording",
)


@contextmanager
def preserved(model: nn.Module) -> Iterator[Snapshot]:
    """Undo on exit whatever the body changed in Python around the model: attributes, flags, caches, lists, counters.

    The contents of parameters and buffers are not saved here: see `contents_preserved`.

    Yields:
        What stood there before, which after the block also says what was undone.
    """
    snapshot = Snapshot(model)
    with Undo(snapshot.restore):
        yield snapshot


@contextmanager
def contents_preserved(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Put back on exit what the block wrote into the tensors, such as batch statistics and counters."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.is_meta]

    @torch.no_grad()
    def put_back() -> None:
        """Write the former contents back into those of the preserved tensors that have changed."""
        for tensor, value in before:
            if tensor.grad_fn is not None:
                tensor.detach_()
            if not same_numbers(tensor, value):
                tensor.copy_(value)

    with Undo(put_back):
        yield


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python's garbage collector run rarely within the block, over new objects for the most part.

    Tracing makes millions of small objects, most of which stay; going through all that is alive again and again takes a
    third of the time of an export.
    """
    thresholds = gc.get_threshold()
    rare = (max(thresholds[0], 50_000), 20, 1000) if thresholds[0] else thresholds
    with Undo(lambda: gc.set_threshold(*thresholds), lambda: gc.set_threshold(*rare)):
        yield


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from logging tracebacks within the block, of errors that are about to be raised anyway."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]

    def disable(values: list[bool]) -> None:
        """Set for each of torch's loggers whether it is off, by a list of booleans in the loggers' order."""
        for logger, disabled in zip(loggers, values, strict=True):
            logger.disabled = disabled

    before = [logger.disabled for logger in loggers]
    with Undo(partial(disable, before), partial(disable, [True] * len(loggers))):
        yield
