"""Makes optimizer groups out of the spec, by parameter name, at any time of a run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.plan.spec import Spec
from abcfx.support import arguments
from abcfx.support.patterns import plain_name
from abcfx.theory.optimizer_groups import as_option
from abcfx.theory.optimizers import Optimizer, family

# torch.optim types its groups as dict[str, Any] and takes no other dict
OptimizerGroup: TypeAlias = dict[str, Any]


@arguments.checked(module=arguments.module, per_parameter=arguments.flag)
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
        optimizer has one; from an optimizer instance also its options, such as betas. Every parameter that requires a
        gradient is in exactly one; frozen ones are in none.

    Raises:
        InvalidInputError: a parameter is not in the spec, or the spec has one that the module has not.
    """
    spec = Spec.of(spec)
    found: dict[Hashable, OptimizerGroup] = {}
    for name, parameter in by_plain_name(module, spec).items():
        if not parameter.requires_grad:
            continue
        row = spec[name]
        values = {"lr": row["lr"], "weight_decay": row["weight_decay"]}
        if row["eps"] is not None:
            values["eps"] = row["eps"]
        rounded = tuple(float(f"{value:.12g}") for value in values.values())
        options = {key: as_option(value) for key, value in row.get("options", {}).items()}
        key = name if per_parameter else (row["optimizer"], *rounded, *options.items())
        group = found.setdefault(key, {"params": [], "param_names": [], **values, **options})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(found.values())


def groups_of(groups: Iterable[OptimizerGroup], spec: Spec, wanted: Optimizer) -> list[OptimizerGroup]:
    """Return those optimizer groups that belong to one of several optimizers.

    Args:
        groups: groups of all optimizers.
        spec: the planned numbers of each parameter, which name its optimizer.
        wanted: the optimizer, by its name, class or instance.

    Raises:
        InvalidInputError: there are none.
    """
    known = {row["optimizer"] for row in spec.values()}
    name = wanted if isinstance(wanted, str) and wanted in known else family(wanted).name
    found = [group for group in groups if spec[group["param_names"][0]]["optimizer"] == name]
    if not found:
        raise InvalidInputError(
            f"groups_for({wanted!r}): no parameter belongs to it; there are groups for {', '.join(sorted(known))}."
        )
    return found


def by_plain_name(module: nn.Module, spec: Spec) -> dict[str, nn.Parameter]:
    """Return a module's parameters by their names in the plan, without the prefixes of wrappers such as DDP.

    Raises:
        InvalidInputError: module and spec do not have the same parameters.
    """
    found = {plain_name(name, spec): parameter for name, parameter in module.named_parameters()}
    for name in [*found, *spec]:
        if name not in spec or name not in found:
            where = "in the module but not in the spec" if name in found else "in the spec but not in the module"
            raise InvalidInputError(
                f"Parameter {name!r} is {where}.\n"
                f"  expected: the module that transform returned, or one with the same parameter names, maybe wrapped."
            )
    return found
