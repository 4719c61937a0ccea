"""The optimizer groups that would put a model right: the user's own, with other learning rates, eps and decay."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import nn

from abcfx.auditing.comparison import Comparison
from abcfx.auditing.fixes import Fix
from abcfx.plan.groups import OptimizerGroup
from abcfx.theory.optimizer_groups import as_option

_LEFT_OUT = ("params", "param_names", "initial_lr")


def right_groups(model: nn.Module, known: Comparison, changes: Mapping[str, Fix]) -> list[OptimizerGroup]:
    """Return groups for the optimizer of the larger model in which every parameter has the right numbers.

    Options beside lr, eps and weight decay stay those of the user's groups. Parameters with equal numbers share one.

    Args:
        model: the larger model.
        known: what was read off.
        changes: factors on the numbers of each parameter that needs any.
    """
    found: dict[Hashable, OptimizerGroup] = {}
    for name, parameter in model.named_parameters():
        if name not in known.rates:
            continue
        held, change = known.rates[name].large, changes.get(name, Fix({}))
        own = held.optimizer.param_groups[held.group]
        values = {key: value for key, value in own.items() if key not in _LEFT_OUT}
        numbers = held.numbers
        for key, number, factor in (
            ("lr", numbers.lr, change.lr),
            ("eps", numbers.eps, change.eps),
            ("weight_decay", numbers.weight_decay, change.weight_decay),
        ):
            if key in own and number is not None:
                values[key] = number * factor
        rounded = {
            key: f"{value:.12g}" if isinstance(value, float) else as_option(value) for key, value in values.items()
        }
        key_of_group = (id(held.optimizer), held.group, *rounded.items())
        group = found.setdefault(key_of_group, {"params": [], "param_names": [], **values})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(found.values())
