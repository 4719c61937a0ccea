"""Makes optimizer groups out of the spec, by parameter name, at any time of a run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.plan.spec import Spec
from abcfx.theory.optimizers import Optimizer, family

# torch.optim types its groups as dict[str, Any] and takes no other dict
OptimizerGroup: TypeAlias = dict[str, Any]
# What wrappers put into the names of the parameters that they hold.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def param_groups(
    module: nn.Module, spec: Spec | Mapping[str, object], per_parameter: bool = False
) -> list[OptimizerGroup]:
    """Make optimizer groups for a module by the names of its parameters: after sharding, compiling, loading, resuming.

    Args:
        module: has the parameters of the transformed model under the same names; wrappers (torch.compile, DDP, FSDP,
            activation checkpointing) may stand around it or inside.
        spec: `result.spec`, or what `spec.to_dict()` returned, read back from JSON.
        per_parameter: one group for each parameter, in place of one per distinct set of hyperparameters in order of
            first appearance.

    Returns:
        Plain dicts: `params`, `param_names` (as in the spec), absolute `lr`, `weight_decay`, and `eps` where the
        optimizer has one. Every parameter that requires a gradient is in exactly one; frozen ones are in none.

    Raises:
        InvalidInputError: a parameter is not in the spec, or the spec has one that the module has not.
    """
    spec = Spec.of(spec)
    found: dict[Hashable, OptimizerGroup] = {}
    for name, parameter in _by_plain_name(module, spec).items():
        if not parameter.requires_grad:
            continue
        row = spec[name]
        values = {"lr": row["lr"], "weight_decay": row["weight_decay"]}
        if row["eps"] is not None:
            values["eps"] = row["eps"]
        rounded = tuple(float(f"{value:.12g}") for value in values.values())
        key = name if per_parameter else (row["optimizer"], *rounded)
        group = found.setdefault(key, {"params": [], "param_names": [], **values})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(found.values())


def groups_of(groups: Iterable[OptimizerGroup], spec: Spec, wanted: Optimizer) -> list[OptimizerGroup]:
    """Return the groups of one optimizer, given by name, class or instance.

    Raises:
        InvalidInputError: there are none.
    """
    name = family(wanted).name
    found = [group for group in groups if spec[group["param_names"][0]]["optimizer"] == name]
    if not found:
        known = ", ".join(sorted({row["optimizer"] for row in spec.values()}))
        raise InvalidInputError(f"groups_for({wanted!r}): no parameter belongs to it; there are groups for {known}.")
    return found


def _by_plain_name(module: nn.Module, spec: Spec) -> dict[str, nn.Parameter]:
    """Return the module's parameters under their names in the spec; raises where the two differ."""
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
    """Return a parameter's name without what wrappers put in; a model's own submodule called "module" stays in it."""
    if name in spec:
        return name
    parts = name.split(".")
    for drop in (_WRAPPERS[:1] + _WRAPPERS[2:], _WRAPPERS):
        plain = ".".join(part for part in parts if part not in drop)
        if plain in spec:
            return plain
    return name
