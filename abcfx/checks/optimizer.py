"""`check_optimizer`: whether an optimizer still has what the spec says."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low
from typing import Any

import torch

from abcfx.errors import InvalidInputError
from abcfx.plan.spec import ParameterPlan, Spec
from abcfx.theory.optimizers import family
from abcfx.transformed import Transformed

KEYS = ("lr", "weight_decay", "eps")
_TOLERANCE = 1e-5


def check_optimizer(optimizer: torch.optim.Optimizer, result: Transformed) -> None:
    """Check, at any moment of a run, that rates stand to each other as they were planned.

    A scheduler may multiply all rates by one number; one that sets them all alike, or a checkpoint of another run that
    brings its own groups, undoes the transform silently.

    Args:
        optimizer: made from `result.param_groups`, or from `result.groups_for(...)` for one of several.
        result: what `transform` returned.

    Raises:
        InvalidInputError: names the group whose lr, eps or weight decay is off and what it should be, or a parameter
            that is in no group.
    """
    names = {id(parameter): name for name, parameter in result.module.named_parameters()}
    held: dict[str, tuple[int, dict[str, Any]]] = {}
    for index, group in enumerate(optimizer.param_groups):
        given = group.get("param_names") or [None] * len(group["params"])
        for parameter, own in zip(group["params"], given, strict=True):
            name = names.get(id(parameter), own)
            if name not in result.spec:
                raise InvalidInputError(
                    f"Optimizer group {index} holds a parameter of shape {tuple(parameter.shape)} that is not one of "
                    f"the transformed model's.\n  To fix: build the optimizer from abcfx.param_groups(module, spec)."
                )
            held[name] = index, group
    _check_family(optimizer, held, result.spec)
    _check_complete(held, result)
    for key in KEYS:
        _check_ratios(key, held, result.plan)


def _check_family(optimizer: torch.optim.Optimizer, held: Mapping[str, Any], spec: Spec) -> None:
    """An optimizer whose update has another size, or that decays weights in another way, needs other numbers."""
    try:
        own = family(optimizer)
    except InvalidInputError:
        return  # of a kind that nothing is known of: the user said what it is like
    decays = any(spec[name]["weight_decay"] for name in held)
    for name in held:
        planned = family(spec[name]["optimizer"])
        if (own.update, own.shape) != (planned.update, planned.shape) or (decays and own.decay != planned.decay):
            raise InvalidInputError(
                f"{type(optimizer).__name__} holds {name!r}, whose numbers were planned for {planned.name}: its update "
                f"or its weight decay is another.\n  To fix: transform(..., optimizer={own.name!r})"
            )


def _check_complete(held: Mapping[str, Any], result: Transformed) -> None:
    wanted = {result.spec[name]["optimizer"] for name in held}
    for group in result.param_groups:
        missing = [n for n in group["param_names"] if n not in held and result.spec[n]["optimizer"] in wanted]
        if missing:
            raise InvalidInputError(
                f"{missing[0]!r} is in no group of this optimizer, so it does not learn.\n"
                f"  To fix: build the optimizer from all of result.param_groups."
            )


def _check_ratios(key: str, held: Mapping[str, tuple[int, dict[str, Any]]], plan: Mapping[str, ParameterPlan]) -> None:
    """All values may differ from the plan by one common factor only (eps and weight decay by none but that too)."""
    planned = {
        name: float(value) for name, (_, group) in held.items() if key in group and (value := getattr(plan[name], key))
    }
    ratios = {name: float(held[name][1][key]) / value for name, value in planned.items()}
    common = median_low(ratios.values()) if ratios else 0.0
    for name, ratio in ratios.items():
        if abs(ratio - common) > _TOLERANCE * max(abs(common), abs(ratio)):
            index, group = held[name]
            raise InvalidInputError(
                f"Optimizer group {index} ({name!r} and {len(group['params']) - 1} more) has {key} = "
                f"{float(group[key]):.6g}; expected {planned[name] * common:.6g}, which is {key} = {planned[name]:.6g} "
                f"of the plan times {common:.6g} as in the other groups.\n"
                f"  A scheduler or a loaded checkpoint has changed it. To fix: restore the groups,\n"
                f"  for group, own in zip(optimizer.param_groups, result.param_groups): group[{key!r}] = own[{key!r}]"
            )
