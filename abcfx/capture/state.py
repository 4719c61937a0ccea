"""Leave the model, Python's garbage collection and torch's loggers exactly as they were before a capture."""

from __future__ import annotations

import gc
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from abcfx.errors import CaptureError

# Loggers of torch that print a traceback before it is raised.
_LOGGERS = (
    "torch.export",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.recording",
)
_CONTAINERS = (list, dict, set, OrderedDict)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo on exit whatever the block assigned on the model or its submodules: attributes, flags, caches, lists.

    Tensor contents are not saved: the block must not run real compute that writes into the model's own tensors.
    """
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    restores = [
        _container_restore(value) for _, values in attributes for value in values.values() if type(value) in _CONTAINERS
    ]
    try:
        yield
    finally:
        for module, values in attributes:
            module.__dict__.clear()
            module.__dict__.update(values)
        for restore in restores:
            restore()


def _container_restore(value: object) -> Callable[[], None]:
    """Return a function that gives a list, dict or set back the contents that it has now."""
    if isinstance(value, list):
        items = list(value)

        def restore_list() -> None:
            """Give the list its contents back."""
            value[:] = items

        return restore_list
    assert isinstance(value, dict | set)
    contents = value.copy()

    def restore() -> None:
        """Give the dict or set its contents back."""
        value.clear()
        value.update(contents)

    return restore


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


@contextmanager
def no_hidden_randomness(*, torch_too: bool = False) -> Iterator[None]:
    """Refuse, at the end of the block, a forward that drew random numbers which a graph would freeze.

    Args:
        torch_too: refuse draws from torch's generator as well as from Python's and NumPy's, for a capture that does not
            see torch's draws.

    Raises:
        CaptureError: some generator was used within the block.
    """
    numpy_random = sys.modules.get("numpy.random")

    def states() -> tuple[object, ...]:
        """Return the states of all generators of random numbers that are watched."""
        numpy_state = numpy_random.get_state() if numpy_random else None
        torch_state = torch.get_rng_state().tolist() if torch_too else None
        return random.getstate(), repr(numpy_state and (numpy_state[1].tolist(), numpy_state[2:])), torch_state

    before = states()
    yield
    if states() != before:
        kinds = "random or numpy.random" + ", or torch outside of its factory functions" * torch_too
        raise CaptureError(f"forward draws random numbers from {kinds}; a graph would repeat the same ones for ever")
