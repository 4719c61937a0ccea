"""Leave the model, Python's garbage collection and torch's loggers exactly as they were before a capture."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from abcfx.capture.python_state import Snapshot, same_numbers

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
    try:
        yield snapshot
    finally:
        snapshot.restore()


@contextmanager
def contents_preserved(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Put back on exit what the body wrote into the tensors: batch statistics, counters, vectors of power iteration."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                if tensor.grad_fn is not None:
                    tensor.detach_()
                if not same_numbers(tensor, value):
                    tensor.copy_(value)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python's garbage collector run rarely within the block, over new objects for the most part.

    Tracing makes millions of small objects, most of which stay; going through all that is alive again and again takes a
    third of the time of an export.
    """
    thresholds = gc.get_threshold()
    if thresholds[0]:
        gc.set_threshold(max(thresholds[0], 50_000), 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from logging tracebacks within the block: the errors are about to be raised anyway."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
