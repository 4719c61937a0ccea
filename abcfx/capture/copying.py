"""Copy a model, and refuse with a fix the models that cannot be copied or have no weights yet."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from abcfx.capture.closures import Rebinder, reachable
from abcfx.capture.python_state import weights_of_hooks
from abcfx.errors import InvalidInputError


def copied(model: nn.Module, *, shares_tensors: bool = False) -> nn.Module:
    """Return a deep copy of the model, of which functions that close over parts of the model use the copied parts.

    Args:
        model: the model.
        shares_tensors: whether the copy has the parameters and buffers of the model itself, and goes on to: each module
            of the copy shares the dicts in which torch keeps them.

    Raises:
        InvalidInputError: the model cannot be copied; says why, and what to do.
    """
    refuse_lazy(model)
    _refuse_old_norms(model)
    memo: dict[int, object] = {id(tensor): tensor.detach().clone() for tensor in computed_tensors(model)}
    if shares_tensors:
        memo.update((id(held), held) for module in model.modules() for held in _dicts_of_tensors(module))
    try:
        new = copy.deepcopy(model, memo)
    except Exception as error:  # a __deepcopy__ or __reduce__ of the user's may raise anything
        raise InvalidInputError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}\n"
            "  To fix: apply='inplace' needs no copy."
        ) from error
    _copy_notes(model, memo)
    Rebinder(memo).rebind(new)
    return new


def _copy_notes(model: nn.Module, memo: dict[int, object]) -> None:
    """Give copied parameters what a user wrote onto the originals, such as `mup.infshape`, which deepcopy leaves out.

    Args:
        model: the original model.
        memo: id of each original object -> its copy.
    """
    for parameter in model.parameters():
        twin = memo.get(id(parameter))
        if twin is not None and twin is not parameter:
            notes = {key: value for key, value in vars(parameter).items() if not isinstance(value, torch.Tensor)}
            vars(twin).update({key: value for key, value in notes.items() if key not in vars(twin)})


def _dicts_of_tensors(module: nn.Module) -> tuple[dict[str, object], ...]:
    """Return the dicts in which torch keeps the parameters and buffers of a module."""
    return module.__dict__["_parameters"], module.__dict__["_buffers"]


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


def _refuse_old_norms(model: nn.Module) -> None:
    """Raise an error if torch's old weight norm or spectral norm has computed a weight, which cannot be copied."""
    for path, module in model.named_modules():
        for name, kind in weights_of_hooks(module).items():
            weight = getattr(module, name, None)
            if isinstance(weight, torch.Tensor) and not weight.is_leaf:
                function = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}.get(kind, kind)
                raise InvalidInputError(
                    f"{type(model).__name__} cannot be copied: {path or 'the model'}.{name} is a tensor computed from "
                    f"others.\n  To fix: torch.nn.utils.parametrizations.{function}(module) in place of "
                    f"torch.nn.utils.{function}(module); or apply='inplace', which needs no copy."
                )


def computed_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Return tensors in attributes of modules that were computed with gradients: `copy.deepcopy` refuses to copy these.

    Such are results of the last call that forward keeps, and the weights of old weight norms and spectral norms.
    """
    values = [value for module in model.modules() for value in vars(module).values()]
    found = [part for part in reachable(values) if isinstance(part, torch.Tensor)]
    return [tensor for tensor in found if not tensor.is_leaf]
