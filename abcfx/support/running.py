"""Running a user's model: from a seed, on one thread, in eval mode, on a batch; everything is put back afterwards.

A batch is `(inputs, targets)`, or a dict of keyword arguments, perhaps with labels, or inputs alone. Inputs are one
value, a tuple of positional arguments, or a dict of keyword arguments.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support.undo import Undo

LABELS = ("labels", "label", "targets", "target")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers within the block from a seed; afterwards the generators go on as if unused."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block: faster for small runs, and alike on every number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the random states of torch (all devices), Python and NumPy on exit from the block."""
    python_state = random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    numpy_state = numpy_random.get_state() if numpy_random else None
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            yield
    finally:
        random.setstate(python_state)
        if numpy_random:
            numpy_random.set_state(numpy_state)


def set_mode(model: nn.Module, training: bool) -> None:
    """Put the model in train or eval mode through its own `train`, unless it is in that mode already.

    A model in the wanted mode is left alone, so that submodules which the user froze in eval mode stay so.
    """
    if model.training != training:
        model.train(training)


@contextmanager
def both_modes_restored(model: nn.Module) -> Iterator[None]:
    """Bring a model back to train or eval mode, as it was, on exit from the block.

    That is done through the model's own `train` (which may do work), then module by module.
    """
    training = model.training
    flags = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        """Set the train or eval mode of the model and of each of its modules to what it was before the block."""
        set_mode(model, training)
        for module, flag in flags:
            module.training = flag

    with Undo(put_back):
        yield


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put the models in eval mode, without gradients, within the block; modes and random states come back on exit."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(both_modes_restored(model))
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.no_grad())
        for model in models:
            set_mode(model, False)
        yield


def forward_arguments(model: nn.Module, batch: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the (args, kwargs) with which a batch calls the model's forward.

    Labels in a dict are left out if the forward does not take them.

    Example:
        >>> forward_arguments(nn.Linear(2, 2), ("features", "targets"))
        (('features',), {})
        >>> forward_arguments(nn.Linear(2, 2), {"input": "features", "labels": "targets"})
        ((), {'input': 'features'})
    """
    if batch is None or (isinstance(batch, tuple | list | dict) and not batch):
        raise InvalidInputError(
            f"batch={batch!r}: there is nothing to run the model on.\n"
            f"  To fix: batch=(inputs, targets), a dict of keyword inputs, or a tensor"
        )
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, Mapping):
        taken = inspect.signature(model.forward).parameters
        takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        return (), {key: v for key, v in inputs.items() if key in taken or takes_all or key not in LABELS}
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call_with_batch(model: nn.Module, batch: object) -> object:
    """Call a model with a batch, such as (inputs, targets), and return its output."""
    args, kwargs = forward_arguments(model, batch)
    output: object = model(*args, **kwargs)
    return output
