"""Optimizer state and hyperparameters of a grown model, such that it goes on training as the small one would have.

With w_L = s copies(w) a gradient is g_L = rho copies(g), rho = 1 / (s x number of copies). A moment of the gradient of
degree k is multiplied with rho^k, and what the optimizer adds to w_L must be s times what it adds to w.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from abcfx.errors import GrowthError
from abcfx.growing.fill.width import Widening, multiplier
from abcfx.pairing.factors.index_maps import sizes, tiled
from abcfx.theory.optimizers import OptimizerFamily, family

DEGREES = {
    "exp_avg": 1, "momentum": 1, "momentum_buffer": 1, "exp_inf": 1, "grad_avg": 1, "prev": 1, "exp_avg_sq": 2,
    "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2, "exp_avg_sq_row": 2, "exp_avg_sq_col": 2, "row_var": 2,
    "col_var": 2, "variance": 2,
}  # fmt: skip
"""State that torch's optimizers keep -> its degree in the gradient."""
OF_UPDATES = frozenset({("RMSprop", "momentum_buffer")})
"""What an optimizer keeps of its updates, which are those of the small model times the change of the rate."""


RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Learning rates of a group: its own, and those that torch's schedulers write beside it and go on from."""


@dataclass(frozen=True)
class Grown:
    """One parameter's s, number of copies and rho."""

    s: float
    rho: float


def growth_of(widening: Widening) -> Grown:
    """s and rho of a parameter; averages where entries along a contracted dim have unequal numbers of copies."""
    by = multiplier(widening)
    s = float(by.mean()) if isinstance(by, torch.Tensor) else by
    copies = 1.0
    for factors in widening.dims:
        small, large = sizes(factors)
        padded = any(isinstance(factor, Mapping) and "pad" in factor for factor in factors)
        copies *= 1.0 if padded else large / small
    return Grown(s, 1.0 / (s * copies))


def grown_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Widening], small: nn.Module, large: nn.Module
) -> list[dict[str, Any]]:
    """One group for each parameter of the large model, with the hyperparameters that keep the course.

    Args:
        optimizer: the small model's optimizer.
        names: name in the large model -> how it is made.
        small, large: the models.
    """
    of = {id(p): dict(group) for group in optimizer.param_groups for p in group["params"]}
    ours, theirs = dict(large.named_parameters()), dict(small.named_parameters())
    made, which = [], family(optimizer)
    for name, widening in names.items():
        if name not in ours or (group := of.get(id(theirs[widening.source]))) is None:
            continue
        change = hyperparameters(which, widening, group)
        made.append({**group, **change, "params": [ours[name]], "param_names": [name]})
    return made


def hyperparameters(which: OptimizerFamily, widening: Widening, group: Mapping[str, Any]) -> dict[str, Any]:
    """lr, eps and weight decay of a parameter after growth (docs/growth.md has the derivation)."""
    grown = growth_of(widening)
    s, rho = grown.s, grown.rho
    rate = {"gradient": s / rho, "relative": 1.0}.get(which.update, s)
    if which.update == "spectral":
        rate = s / _spectral(which, widening)
    found: dict[str, Any] = {key: group[key] * rate for key in RATES if key in group}
    if "eps" in group and isinstance(group["eps"], float) and which.has_eps:
        found["eps"] = group["eps"] * rho
    decay = group.get("weight_decay") or 0.0
    if decay:
        found["weight_decay"] = decay * {"gradient": rho / s, "ratio": 1.0 / s}.get(which.decay, 1.0 / rate)
    return found


def _spectral(which: OptimizerFamily, widening: Widening) -> float:
    """By which number an update with singular values of one size is smaller, entry by entry, than the copied one."""
    shapes = zip(*(sizes(factors) for factors in widening.dims[:2]), strict=True)
    small, large = (_adjustment(which.shape, *shape) / math.sqrt(math.prod(shape)) for shape in shapes)
    return large / small


def _adjustment(shape: str, rows: int, columns: int = 1) -> float:
    """What the optimizer itself multiplies such an update with (`Family.shape`)."""
    return math.sqrt({"tall": max(1.0, rows / columns), "rms": max(rows, columns)}.get(shape, 1.0))


def degree_of(optimizer: torch.optim.Optimizer, key: str) -> int | None:
    """Degree in the gradient of what an optimizer keeps under a key; None where it is not known."""
    return 0 if (type(optimizer).__name__, key) in OF_UPDATES else DEGREES.get(key)


def refuse_unknown_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise GrowthError where the optimizer keeps something of which is not known how it depends on the gradient."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() and degree_of(optimizer, key) is None:
                raise GrowthError(
                    f"{type(optimizer).__name__} keeps {key!r}, and how that depends on the gradient is not known.\n"
                    f"  expected one of {', '.join(sorted(DEGREES))}.\n"
                    f"  To fix: abcfx.grow(..., optimizer=None) and start the optimizer anew, with a short warm-up."
                )


def grown_state(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], names: Mapping[str, Widening], small: nn.Module
) -> dict[str, Any]:
    """A state_dict for an optimizer of the same class over `groups`, with state for the parameters in `names`."""
    theirs = dict(small.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for index, group in enumerate(groups):
        (name,) = group["param_names"]
        widening = names.get(name)
        own = optimizer.state.get(theirs[widening.source], {}) if widening else {}
        if own and widening:
            state[index] = {
                key: _grown_entry(degree_of(optimizer, key), key, value, widening, name) for key, value in own.items()
            }
    return _packed(groups, state)


def _grown_entry(degree: int | None, key: str, value: Any, widening: Widening, name: str) -> Any:
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, torch.Tensor) else value
    assert degree is not None, "refused before"
    shape = tuple(sizes(factors)[0] for factors in widening.dims)
    dims = widening.dims
    if tuple(value.shape) != shape:  # factored second moments, one entry for each row or column
        if value.dim() != len(shape):
            raise GrowthError(f"State {key!r} of {name} has shape {tuple(value.shape)} for a weight of shape {shape}.")
        dims = tuple(d if n == size else [[n, n]] for d, n, size in zip(dims, value.shape, shape, strict=True))
    by: torch.Tensor | float = growth_of(widening).rho ** degree
    return tiled(value, dims) * by


def plain_groups(
    optimizer: torch.optim.Optimizer,
    small: nn.Module,
    large: nn.Module,
    origin: Mapping[str, str],
    kept: Collection[str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(groups, state) where nothing is scaled: each parameter with the hyperparameters of its origin.

    Args:
        origin: name in the large model -> name in the small one.
        kept: names whose state is taken over as it is.
    """
    of = {id(p): dict(group) for group in optimizer.param_groups for p in group["params"]}
    ours, theirs = dict(large.named_parameters()), dict(small.named_parameters())
    groups, state = list[dict[str, Any]](), dict[int, dict[str, Any]]()
    for name, source in origin.items():
        if (group := of.get(id(theirs[source]))) is None:
            continue
        own = optimizer.state.get(theirs[source], {})
        if name in kept and own:
            state[len(groups)] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in own.items()}
        groups.append({**group, "params": [ours[name]], "param_names": [name]})
    return groups, _packed(groups, state)


def _packed(groups: list[dict[str, Any]], state: dict[int, dict[str, Any]]) -> dict[str, Any]:
    packed = [{**{k: v for k, v in group.items() if k != "params"}, "params": [i]} for i, group in enumerate(groups)]
    return {"state": state, "param_groups": packed}
