"""Optimizer groups out of the spec, by parameter name, and whether an optimizer still has what the spec says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median_low
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.theory.optimizers import family

if TYPE_CHECKING:
    from abcfx.transformed import Transformed

Spec = Mapping[str, Mapping[str, Any]]
KEYS = ("lr", "weight_decay", "eps")
# What wrappers put into the names of the parameters that they hold.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_TOLERANCE = 1e-5


def param_groups(module: nn.Module, spec: Spec, groups: str = "merged") -> list[dict[str, Any]]:
    """Optimizer groups for a module by the names of its parameters: after sharding, compiling, loading, resuming.

    Args:
        module: has the parameters of the transformed model under the same names; wrappers (torch.compile, DDP, FSDP,
            activation checkpointing) may stand around it or inside.
        spec: `Transformed.spec`, or the same read back from JSON.
        groups: "merged" (one per distinct set of hyperparameters, in order of first appearance) or "parameter".

    Returns:
        Plain dicts: `params`, `param_names` (as in the spec), `lr`, `weight_decay`, and `eps` where the optimizer has
        one. Every parameter that requires a gradient is in exactly one; frozen ones are in none.

    Raises:
        InvalidInputError: a parameter is not in the spec, or the spec has one that the module has not.
    """
    if groups not in ("merged", "parameter"):
        raise InvalidInputError(f"groups={groups!r}; expected 'merged' or 'parameter'.")
    parameters = _by_plain_name(module, spec)
    found: dict[Any, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        row = spec[name]
        if not parameter.requires_grad:
            continue
        values = {key: row[key] for key in KEYS if row[key] is not None}
        rounded = tuple(float(f"{v:.12g}") for v in values.values())
        key = name if groups == "parameter" else (row["optimizer"], *rounded)
        group = found.setdefault(key, {"params": [], "param_names": [], **values})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(found.values())


def groups_of(groups: Iterable[dict[str, Any]], spec: Spec, wanted: Any) -> list[dict[str, Any]]:
    """The groups of one optimizer, given by name, class or instance. Raises InvalidInputError when there are none."""
    name = family(wanted).name
    found = [group for group in groups if spec[group["param_names"][0]]["optimizer"] == name]
    if not found:
        known = ", ".join(sorted({str(row["optimizer"]) for row in spec.values()}))
        raise InvalidInputError(f"groups_for({wanted!r}): no parameter belongs to it; there are groups for {known}.")
    return found


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
        _check_ratios(key, held, result.spec)


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


def _check_ratios(key: str, held: Mapping[str, tuple[int, dict[str, Any]]], spec: Spec) -> None:
    """All values may differ from the plan by one common factor only (eps and weight decay by none but that too)."""
    planned = {name: float(spec[name][key]) for name, (_, group) in held.items() if spec[name][key] and key in group}
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


def _by_plain_name(module: nn.Module, spec: Spec) -> dict[str, nn.Parameter]:
    found = {_plain(name, spec): parameter for name, parameter in module.named_parameters()}
    for name in [*found, *spec]:
        if name not in spec or name not in found:
            where = "in the module but not in the spec" if name in found else "in the spec but not in the module"
            raise InvalidInputError(
                f"Parameter {name!r} is {where}.\n"
                f"  expected: the module that transform returned, or one with the same parameter names, maybe wrapped."
            )
    return found


def _plain(name: str, spec: Spec) -> str:
    """A parameter's name without what wrappers put in; a model's own submodule called "module" keeps its name."""
    if name in spec:
        return name
    parts = name.split(".")
    for drop in (_WRAPPERS[:1] + _WRAPPERS[2:], _WRAPPERS):
        plain = ".".join(part for part in parts if part not in drop)
        if plain in spec:
            return plain
    return name
