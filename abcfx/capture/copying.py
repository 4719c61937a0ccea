"""Copy a model, and refuse with a fix the models that cannot be copied or have no weights yet."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from abcfx.errors import InvalidInputError


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        InvalidInputError: the model cannot be copied; names the module and the attribute, and what to do.
    """
    refuse_lazy(model)
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a __deepcopy__ or __reduce__ of the user's may raise anything
        raise InvalidInputError(_not_copied(model, error)) from error


def refuse_lazy(model: nn.Module) -> None:
    """Raise an error for a model with lazy weights, which get their shapes in its first call.

    Raises:
        InvalidInputError: names the module, and what to do.
    """
    for path, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise InvalidInputError(
                f"{path or 'the model'} ({type(module).__name__}) has no weights yet: its first call makes them.\n"
                "  To fix: call the model once before, model(*inputs), on inputs like the example's."
            )


def _not_copied(model: nn.Module, error: Exception) -> str:
    """Return the message that says why a model cannot be copied: a tensor computed from others, or else `error`."""
    for path, module in model.named_modules():
        hooks = list(module._forward_pre_hooks.values())
        for name, value in vars(module).items():
            if not isinstance(value, torch.Tensor) or value.is_leaf:
                continue
            kinds = [type(hook) for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]
            fix = "set it to None before, or keep a detached copy of it"
            if kinds:
                old = kinds[0].__name__
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
