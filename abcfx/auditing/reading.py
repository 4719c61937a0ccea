"""Reads off two instances of a model, and their optimizers, how init, rates, eps and decay scale with width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import without_multipliers
from abcfx.exponents.fixed import FixedExponents
from abcfx.plan.draws import Draw, Law
from abcfx.plan.own_init import OwnInit, measure_own_init
from abcfx.theory.optimizer_groups import GroupNumbers, group_numbers
from abcfx.theory.optimizers import OptimizerFamily, family

Optimizers = tuple[torch.optim.Optimizer, ...]


@dataclass(frozen=True)
class Held:
    """The place of a parameter in an optimizer: which, in which group, and with which numbers.

    Attributes:
        optimizer: the optimizer.
        group: index of its group.
        numbers: learning rate, weight decay, eps and options of the group.
        family: how large the optimizer's updates are.
    """

    optimizer: torch.optim.Optimizer
    group: int
    numbers: GroupNumbers
    family: OptimizerFamily


@dataclass(frozen=True)
class Rates:
    """The numbers that train one parameter at both widths, and their exponents of the width ratio m.

    Attributes:
        small: the place of the parameter in the optimizers of the smaller model.
        large: that in those of the larger.
        c: exponent of the learning rate m^-c.
        eps: exponent of eps ~ m^-eps; None for an optimizer without one, or with zero.
        decay: exponent of weight decay ~ m^decay; None without any.
    """

    small: Held
    large: Held
    c: float
    eps: float | None
    decay: float | None


def held_by(optimizers: Optimizers, parameters: Mapping[str, torch.Tensor]) -> dict[str, Held]:
    """Return for each parameter of a model its place in the optimizers, by identity; a parameter in none is left out.

    Args:
        optimizers: the optimizers that train the model.
        parameters: the parameters of the model by name.

    Raises:
        InvalidInputError: an optimizer holds none of the model's parameters.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, Held] = {}
    for optimizer in optimizers:
        kind, numbers = family(optimizer), group_numbers(optimizer)
        own = {
            names[id(parameter)]: Held(optimizer, index, numbers[index], kind)
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            if id(parameter) in names
        }
        if not own:
            raise InvalidInputError(
                "audit: the optimizer holds none of the model's parameters.\n"
                "  To fix: make_optimizer(model) builds the optimizer of the very model that it is given"
            )
        found |= own
    return found


def read_rates(small: Mapping[str, Held], large: Mapping[str, Held], width_ratio: float) -> dict[str, Rates]:
    """Return how the numbers of each parameter scale from the smaller to the larger model.

    Args:
        small: the place of each parameter in the optimizers of the smaller model.
        large: that in those of the larger, under the same names.
        width_ratio: width of the larger model over that of the smaller.
    """
    found = {}
    for name in large.keys() & small.keys():
        ours, theirs = large[name].numbers, small[name].numbers
        c = _exponent(theirs.lr, ours.lr, width_ratio)
        if c is None:
            continue  # a rate of zero: it does not learn
        eps = _exponent(theirs.eps, ours.eps, width_ratio)
        decay = _exponent(ours.weight_decay, theirs.weight_decay, width_ratio)
        found[name] = Rates(small[name], large[name], c, eps, decay)
    return found


def _exponent(small: float | None, large: float | None, width_ratio: float) -> float | None:
    """Return x, where a number shrinks as m^-x from the smaller to the larger model; None if one of them is zero."""
    if not small or not large:
        return None
    return math.log(small / large) / math.log(width_ratio) + 0.0


def read_init(
    small: Mapping[str, torch.Tensor], large: Mapping[str, torch.Tensor], fixed: FixedExponents
) -> dict[str, OwnInit]:
    """Return how the init of each parameter scales with width, by the draws of both models.

    Args:
        small: the parameters of the smaller model, by the names of the larger.
        large: those of the larger.
        fixed: planned exponents, which stand where a draw says nothing: all zeros, a fixed pattern, a few entries.
    """
    planned = {name: without_multipliers(each).b for name, each in fixed.parameters.items()}
    each_by_itself = {name: name for name in planned}  # like tensors may be drawn in unlike ways
    return measure_own_init(large, small, fixed.widths, each_by_itself, planned)


def is_zero(draw: Draw) -> bool:
    """Whether a tensor starts as zeros."""
    return draw.law is Law.CONSTANT and not draw.constant
