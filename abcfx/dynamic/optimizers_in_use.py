"""The optimizers that a `DynamicAlignment` was given: whether they train the transformed model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.theory.optimizer_classes import inner_optimizer
from abcfx.transformed import Transformed


def inner_optimizers(
    result: Transformed, given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a user gave, without wrappers around them (Accelerate's), which run no hooks.

    Args:
        result: what `transform` returned; it is looked at as well.
        given: an optimizer, or several.

    Raises:
        InvalidInputError: something else was given.
    """
    if not isinstance(result, Transformed):
        raise InvalidInputError(
            f"DynamicAlignment: result is a {type(result).__name__}.\n"
            f"  To fix: result = abcfx.transform(...), not result.module"
        )
    several = list(given) if isinstance(given, Sequence) else [given]
    if not several:
        raise InvalidInputError(
            "DynamicAlignment: expected an optimizer or a list of them, got none.\n"
            "  To fix: DynamicAlignment(result, torch.optim.AdamW(result.param_groups))"
        )
    found = [inner_optimizer(each) for each in several]
    for each in found:
        if not isinstance(each, torch.optim.Optimizer):
            raise InvalidInputError(
                f"DynamicAlignment: expected an optimizer or a list of them, got {type(each).__name__}.\n"
                f"  To fix: torch.optim.AdamW(result.groups(per_parameter=True))"
            )
    if len({id(each) for each in found}) < len(found):
        raise InvalidInputError(
            "DynamicAlignment: one optimizer was given twice, and its rates would be multiplied twice.\n"
            "  To fix: give each once."
        )
    return found


def names_of_groups(optimizer: torch.optim.Optimizer, result: Transformed) -> list[str]:
    """Return for each parameter group of an optimizer the name of its single parameter.

    Args:
        optimizer: made from `result.groups(per_parameter=True)`.
        result: the transformed model.

    Raises:
        InvalidInputError: a group holds several parameters, or one that is not of the transformed model.
    """
    names = {id(parameter): name for name, parameter in result.module.named_parameters()}
    found = []
    for index, group in enumerate(optimizer.param_groups):
        if len(group["params"]) != 1:
            raise InvalidInputError(
                f"DynamicAlignment: group {index} of the optimizer holds {len(group['params'])} parameters; each needs "
                f"a rate of its own.\n  To fix: torch.optim.AdamW(result.groups(per_parameter=True))"
            )
        parameter, name = group["params"][0], names.get(id(group["params"][0]), "")
        if not name and type(parameter) is not nn.Parameter:  # a shard, whose module holds the whole just now
            name = group.get("param_names", [""])[0]
        if name not in result.spec:
            raise InvalidInputError(
                f"DynamicAlignment: the parameter of group {index} is not one of the transformed model, which is "
                f"measured: result.module, or a wrapper around it, has to train, and not a copy.\n"
                f"  To fix: torch.optim.AdamW(result.groups(per_parameter=True))"
            )
        found.append(name)
    return found
