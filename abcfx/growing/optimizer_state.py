"""Carries an optimizer over to a grown model, so that it goes on training as the small one would have.

With w_L = s copies(w) a gradient is g_L = rho copies(g), where rho = 1 / (s x number of copies). A moment of degree k
in the gradient is multiplied by rho^k, and what the optimizer adds to w_L must be s times what it adds to w.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from abcfx.errors import GrowthError
from abcfx.growing.fill.width import Widening, mean_multiplier
from abcfx.pairing.factors.index_maps import IndexMap, tiled
from abcfx.theory.optimizers import OptimizerFamily, family

Group = dict[str, Any]
"""One parameter group of a torch optimizer."""

DEGREES = {
    "exp_avg": 1, "momentum": 1, "momentum_buffer": 1, "exp_inf": 1, "grad_avg": 1, "prev": 1, "exp_avg_sq": 2,
    "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2, "exp_avg_sq_row": 2, "exp_avg_sq_col": 2, "row_var": 2,
    "col_var": 2, "variance": 2,
}  # fmt: skip
"""State that torch's optimizers keep -> its degree in the gradient."""
OF_UPDATES = frozenset({("RMSprop", "momentum_buffer")})
"""(optimizer, state) that accumulates updates, not gradients; it scales like the update before the learning rate."""

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Learning rates of a group: its own, and those that torch's schedulers write beside it and go on from."""


@dataclass(frozen=True)
class ParameterGrowth:
    """The factors by which growth changes the entries of one parameter and of its gradient.

    Attributes:
        weight: s, by which the copies of the weight are multiplied.
        gradient: rho, the gradient of an entry over that of the entry that it is a copy of.
    """

    weight: float
    gradient: float


def growth_of(widening: Widening) -> ParameterGrowth:
    """Return the factors by which growth changes the entries of a parameter and of its gradient.

    They are means where entries have unequal numbers of copies.

    Args:
        widening: which entries of the small tensor were copied where, and what they were multiplied by.
    """
    weight = mean_multiplier(widening)
    copies = 1.0
    for dim in widening.dims:
        small, large = dim.sizes
        copies *= large / small if dim.old_entries is None else 1.0
    return ParameterGrowth(weight, 1.0 / (weight * copies))


def grown_groups(
    optimizer: torch.optim.Optimizer, recipes: Mapping[str, Widening], small: nn.Module, large: nn.Module
) -> list[Group]:
    """Make an optimizer group for each parameter of the large model, so that it trains as the small one would have.

    Args:
        optimizer: the small model's optimizer.
        recipes: name in the large model -> how the parameter was filled.
        small: the small model.
        large: the large model.
    """
    group_of = _groups_by_parameter(optimizer)
    ours, theirs = dict(large.named_parameters()), dict(small.named_parameters())
    made, which = [], family(optimizer)
    for name, widening in recipes.items():
        if name not in ours or (group := group_of.get(id(theirs[widening.source]))) is None:
            continue
        change = hyperparameters(which, widening, group)
        made.append({**group, **change, "params": [ours[name]], "param_names": [name]})
    return made


def _groups_by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, Group]:
    """Return a copy of an optimizer group for each of its parameters, by the parameter's id."""
    return {id(parameter): dict(group) for group in optimizer.param_groups for parameter in group["params"]}


def hyperparameters(which: OptimizerFamily, widening: Widening, group: Group) -> Group:
    """Return lr, eps and weight decay of a parameter's optimizer group after growth; docs/growth.md derives them.

    Args:
        which: the family of the optimizer: what its update depends on.
        widening: how the parameter was filled.
        group: the parameter's group in the small model's optimizer.
    """
    growth = growth_of(widening)
    s, rho = growth.weight, growth.gradient
    rate = {"gradient": s / rho, "relative": 1.0}.get(which.update, s)
    if which.update == "spectral":
        rate = s / _spectral(which, widening)
    found = {key: group[key] * rate for key in RATES if key in group}
    if "eps" in group and isinstance(group["eps"], float) and which.has_eps:
        found["eps"] = group["eps"] * rho
    decay = group.get("weight_decay") or 0.0
    if decay:
        found["weight_decay"] = decay * {"gradient": rho / s, "ratio": 1.0 / s}.get(which.decay, 1.0 / rate)
    return found


def _spectral(which: OptimizerFamily, widening: Widening) -> float:
    """Return by which factor the entries of an update are larger in the large model, for optimizers such as Muon.

    Such an optimizer gives an update singular values of one size.

    Args:
        which: the family of the optimizer.
        widening: how the parameter was filled.
    """
    shapes = zip(*(dim.sizes for dim in widening.dims[:2]), strict=True)
    small, large = (which.shape_factor(*shape) / math.sqrt(math.prod(shape)) for shape in shapes)
    return large / small


def degree_of(optimizer: torch.optim.Optimizer, key: str) -> int | None:
    """Return k where an optimizer's state named `key` grows like gradient^k: 1 for a mean, 2 for a mean square.

    None if that is not known.
    """
    return 0 if (type(optimizer).__name__, key) in OF_UPDATES else DEGREES.get(key)


def refuse_unknown_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise an error if an optimizer keeps state that depends on the gradient in a way that is not known.

    Raises:
        GrowthError: names that state.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() and degree_of(optimizer, key) is None:
                raise GrowthError(
                    f"{type(optimizer).__name__} keeps {key!r}, and how that depends on the gradient is not known.\n"
                    f"  expected one of {', '.join(sorted(DEGREES))}.\n"
                    f"  To fix: abcfx.grow(..., optimizer=None) and start the optimizer anew, with a short warm-up."
                )


def grown_state(
    optimizer: torch.optim.Optimizer, groups: list[Group], recipes: Mapping[str, Widening], small: nn.Module
) -> dict[str, Any]:
    """Make the state_dict for an optimizer of the same class over the large model's groups.

    Args:
        optimizer: the small model's optimizer.
        groups: one for each parameter of the large model.
        recipes: name in the large model -> how the parameter was filled; names that are left out start without state.
        small: the small model.
    """
    theirs = dict(small.named_parameters())
    state: dict[int, dict[str, object]] = {}
    for index, group in enumerate(groups):
        (name,) = group["param_names"]
        widening = recipes.get(name)
        own = optimizer.state.get(theirs[widening.source], {}) if widening else {}
        if own and widening:
            state[index] = {
                key: _grown_entry(degree_of(optimizer, key), key, value, widening, name) for key, value in own.items()
            }
    return _state_dict(groups, state)


def _grown_entry(degree: int | None, key: str, value: object, widening: Widening, name: str) -> object:
    """Make one entry of a parameter's optimizer state after growth: repeat a tensor, keep anything else as it is.

    Args:
        degree: k where the tensor grows like gradient^k.
        key: name of the entry.
        value: the entry for the small model.
        widening: how the parameter was filled.
        name: name of the parameter.

    Raises:
        GrowthError: the tensor has a shape that does not fit the parameter's.
    """
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, torch.Tensor) else value
    assert degree is not None, "refuse_unknown_state raises before"
    shape = tuple(dim.sizes[0] for dim in widening.dims)
    dims = widening.dims
    if tuple(value.shape) != shape:  # factored second moments, one entry for each row or column
        if value.dim() != len(shape):
            raise GrowthError(
                f"{name} has state {key!r} of shape {tuple(value.shape)}.\n"
                f"  expected: the shape of the weight, {shape}, or 1 in the place of some of its dims.\n"
                f"  To fix: abcfx.grow(..., optimizer=None) and start the optimizer anew, with a short warm-up."
            )
        dims = tuple(
            dim if n == size else IndexMap.unchanged(n) for dim, n, size in zip(dims, value.shape, shape, strict=True)
        )
    return tiled(value, dims) * growth_of(widening).gradient ** degree


def plain_groups(
    optimizer: torch.optim.Optimizer,
    small: nn.Module,
    large: nn.Module,
    origin: Mapping[str, str],
    kept: Collection[str],
) -> tuple[list[Group], dict[str, Any]]:
    """Make optimizer groups and state for a model whose weights are not multiplied: hyperparameters stay.

    Args:
        optimizer: the small model's optimizer.
        small: the small model.
        large: the large model.
        origin: name in the large model -> name in the small one whose hyperparameters it takes.
        kept: names in the large model whose state is taken over; the others start without state.

    Returns:
        One group for each parameter, and the state_dict for an optimizer over them.
    """
    group_of = _groups_by_parameter(optimizer)
    ours, theirs = dict(large.named_parameters()), dict(small.named_parameters())
    groups, state = list[Group](), dict[int, dict[str, object]]()
    for name, source in origin.items():
        if (group := group_of.get(id(theirs[source]))) is None:
            continue
        own = optimizer.state.get(theirs[source], {})
        if name in kept and own:
            state[len(groups)] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in own.items()}
        groups.append({**group, "params": [ours[name]], "param_names": [name]})
    return groups, _state_dict(groups, state)


def _state_dict(groups: list[Group], state: dict[int, dict[str, object]]) -> dict[str, Any]:
    """Pack optimizer groups and state as `Optimizer.state_dict` does, with numbers in place of parameters."""
    packed = [{**{k: v for k, v in group.items() if k != "params"}, "params": [i]} for i, group in enumerate(groups)]
    return {"state": state, "param_groups": packed}
