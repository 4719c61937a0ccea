"""Leaves the model, the random number generators and torch's modes exactly as they were before a capture."""

from __future__ import annotations

import copy
import gc
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from abcfx.errors import CaptureError, InvalidInputError
from abcfx.support.running import both_modes_restored as both_modes_restored
from abcfx.support.running import preserved_rng as preserved_rng
from abcfx.support.running import set_mode as set_mode

# Those which print a traceback before it is raised.
_LOGGERS = (
    "torch.export",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.recording",
)
_CONTAINERS = (list, dict, set, OrderedDict)


def _restore_container(value: Any, saved: Any) -> None:
    if isinstance(value, list):
        value[:] = saved
    else:
        value.clear()
        value.update(saved)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo on exit whatever the body assigned on the model or its submodules: attributes, flags, caches, lists.

    Tensor contents are not saved: the body must not run real compute on the model's own tensors.
    """
    saved: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]] = []
    for module in model.modules():
        attributes = dict(module.__dict__)
        containers = [(value, type(value)(value)) for value in attributes.values() if type(value) in _CONTAINERS]
        saved.append((module, attributes, containers))
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for value, copied in containers:
                _restore_container(value, copied)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within the block Python looks for cyclic garbage among new objects only.

    Tracing makes millions of small objects, most of which stay; going through all that is alive again and again
    takes a third of the time of an export.
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
    """Within the block torch does not log its own tracebacks of errors that are about to be raised anyway."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model with weights that are made in its first call.

    Raises:
        InvalidInputError: names the module, and what to do.
    """
    for path, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise InvalidInputError(
                f"{path or 'the model'} ({type(module).__name__}) has no weights yet: its first call makes them.\n"
                "  To fix: call the model once before, model(*inputs), on inputs like the example's."
            )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model.

    Raises:
        InvalidInputError: the model cannot be copied; names the module and the attribute, and what to do.
    """
    refuse_lazy(model)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InvalidInputError(_not_copied(model, error)) from error


def _not_copied(model: nn.Module, error: Exception) -> str:
    for path, module in model.named_modules():
        hooks = list(module._forward_pre_hooks.values())
        for name, value in vars(module).items():
            if not isinstance(value, torch.Tensor) or value.is_leaf:
                continue
            old = next((type(h).__name__ for h in hooks if type(h).__module__.startswith("torch.nn.utils.")), "")
            fix = "set it to None before, or keep a detached copy of it"
            if old:
                function = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}.get(old, old)
                fix = (
                    f"torch.nn.utils.parametrizations.{function}(module) in place of torch.nn.utils.{function}(module)"
                )
            return (
                f"{type(model).__name__} cannot be copied: {path or 'the model'}.{name} is a tensor computed from "
                f"others.\n  To fix: {fix}."
            )
    return (
        f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}\n"
        "  To fix: apply='inplace' needs no copy."
    )


@contextmanager
def no_hidden_randomness(*, torch_too: bool = False) -> Iterator[None]:
    """Refuse a forward that draws from a generator whose draws a capture would freeze into the graph.

    Those are Python's and NumPy's; with `torch_too` also torch's own, for a capture that does not see these draws.

    Raises:
        CaptureError: some generator was used within the block.
    """
    numpy_random = sys.modules.get("numpy.random")

    def states() -> tuple[Any, ...]:
        numpy_state = numpy_random.get_state() if numpy_random else None
        torch_state = torch.get_rng_state().tolist() if torch_too else None
        return random.getstate(), repr(numpy_state and (numpy_state[1].tolist(), numpy_state[2:])), torch_state

    before = states()
    yield
    if states() != before:
        kinds = "random or numpy.random" + ", or torch outside of its factory functions" * torch_too
        raise CaptureError(f"forward draws random numbers from {kinds}; a graph would repeat the same ones for ever")
