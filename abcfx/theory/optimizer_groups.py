"""The numbers that the groups of an optimizer instance give to each parameter: lr, weight decay, eps, and options."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TypeAlias

import torch

from abcfx.errors import InvalidInputError
from abcfx.support.patterns import plain_name
from abcfx.theory.optimizer_classes import inner_optimizer
from abcfx.theory.optimizers import Optimizer, family

GroupOption: TypeAlias = bool | int | float | str | tuple[float, ...] | None
# How a step is computed, not what it computes.
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
_CYCLED = ("base_momentum", "max_momentum")  # a scheduler that moves momentum or betas leaves these in a group
MOMENTUM = frozenset({"betas", "momentum", "beta1"})


@dataclass(frozen=True)
class GroupNumbers:
    """The numbers that one group of an optimizer gives to its parameters; None where it says nothing.

    Attributes:
        lr: learning rate before any scheduler.
        weight_decay: weight decay.
        eps: what is added to the root of the mean square of the gradient, for optimizers that do so.
        options: everything else that differs from the constructor's default (betas, momentum, adjust_lr_fn).
    """

    lr: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    options: Mapping[str, GroupOption] = field(default_factory=dict)

    def differs_from(self, other: GroupNumbers) -> tuple[str, ...]:
        """Return the names of the numbers and options in which the groups of two optimizers differ."""
        named = [key for key in ("lr", "weight_decay", "eps") if getattr(self, key) != getattr(other, key)]
        keys = [key for key in {**self.options, **other.options} if self.options.get(key) != other.options.get(key)]
        return (*named, *keys)


def as_number(value: object) -> float | None:
    """Return a number, also one in a tensor or of numpy, as a float; None for anything else.

    >>> as_number(torch.tensor([0.5]))
    0.5
    """
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_meta else None
    if isinstance(value, Real):
        try:
            return None if isinstance(value, bool) else float(value)
        except OverflowError:  # an int beyond 1e308
            return None
    item = getattr(value, "item", None)  # a numpy array of one entry
    if callable(item) and getattr(value, "size", None) == 1:
        found = item()
        return float(found) if isinstance(found, int | float) else None
    return None


def group_numbers(optimizer: torch.optim.Optimizer) -> list[GroupNumbers]:
    """Return the lr, weight decay, eps and options of every parameter group of an optimizer instance.

    Raises:
        InvalidInputError: the optimizer is not known.
    """
    has_eps, usual = family(optimizer).has_eps, _usual_options(optimizer)
    left_out = {"lr", "weight_decay", *(("eps",) if has_eps else ())}
    found = []
    for group in optimizer.param_groups:
        lr = as_number(group.get(_rate_key(group)))
        decay, eps = as_number(group.get("weight_decay")), as_number(group.get("eps")) if has_eps else None
        moved = MOMENTUM if moves_momentum(group) else frozenset[str]()
        own = {key: as_option(group[key]) for key in usual if key in group and key not in left_out | moved}
        is_data = {key: value for key, value in own.items() if value is not None or group[key] is None}
        options = {key: value for key, value in is_data.items() if value != usual[key]}
        found.append(GroupNumbers(lr, decay, eps, options))
    return found


def _rate_key(group: Mapping[str, object]) -> str:
    """Return the key under which an optimizer group holds its rate as it is without a scheduler, or at its peak.

    Schedulers keep it as `initial_lr`; OneCycleLR, which starts at a fraction of the rate, as `max_lr`.
    """
    if "max_lr" in group and "min_lr" in group:
        return "max_lr"
    return "initial_lr" if "initial_lr" in group else "lr"


def names_in(group: Mapping[str, object]) -> list[str]:
    """Return the names that an optimizer group holds beside its parameters; "" for each if they are not as many.

    They do not fit once parameters were added to the group, or taken out, without their names.
    """
    names, parameters = group.get("param_names"), group["params"]
    assert isinstance(parameters, list | tuple)
    if not isinstance(names, list | tuple) or len(names) != len(parameters):
        return [""] * len(parameters)
    return [str(name) for name in names]


def _usual_options(optimizer: torch.optim.Optimizer) -> dict[str, GroupOption]:
    """Return the defaults of an optimizer's constructor, without options such as `foreach`, which change no result."""
    taken = inspect.signature(type(inner_optimizer(optimizer)).__init__).parameters
    return {key: as_option(each.default) for key, each in taken.items() if key not in IMPLEMENTATION}


def moves_momentum(group: Mapping[str, object]) -> bool:
    """Whether a scheduler cycles the momentum or the betas of an optimizer group: they are then not the user's."""
    return any(key in group for key in _CYCLED)


def given_options(optimizer: torch.optim.Optimizer) -> dict[str, GroupOption]:
    """Return the options given to an optimizer's constructor that one of its groups overrules, except lr.

    A value that is the constructor's default does not count as given.
    """
    held, usual = inner_optimizer(optimizer), _usual_options(optimizer)
    groups = optimizer.param_groups
    moved = MOMENTUM if any(map(moves_momentum, groups)) else frozenset[str]()
    given = {key: as_option(held.defaults[key]) for key in usual if key in held.defaults and key not in {"lr", *moved}}
    return {
        key: value
        for key, value in given.items()
        if value != usual[key] and any(key in group and as_option(group[key]) != value for group in groups)
    }


def as_option(value: object) -> GroupOption:
    """Return an optimizer option as plain data: a list becomes a tuple, an object that is no data becomes None."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, tuple | list):
        numbers = [as_number(each) for each in value]
        return tuple(each for each in numbers if each is not None) if None not in numbers else None
    return as_number(value)


def shared_number(optimizer: Optimizer | Mapping[str, Optimizer], key: str, usual: float) -> float | None:
    """Return the lr or weight decay that all groups share; None if they differ.

    Args:
        optimizer: the optimizer, or one for each role or pattern.
        key: "lr" or "weight_decay".
        usual: the number for an optimizer that is no instance, or has none.
    """
    every = list(optimizer.values()) if isinstance(optimizer, Mapping) else [optimizer]
    values: set[float] = set()
    for each in every:
        groups = group_numbers(each) if isinstance(each, torch.optim.Optimizer) else [GroupNumbers()]
        values |= {usual if (value := getattr(group, key)) is None else float(value) for group in groups}
    return values.pop() if len(values) == 1 else None


def own_numbers(
    assigned: Mapping[str, Optimizer],
    names_of: Mapping[int, Collection[str]],
    learning: Collection[str],
    given: Collection[str] = (),
) -> dict[str, GroupNumbers]:
    """Find lr, weight decay, eps and options of each parameter in the optimizer instance that trains it.

    Args:
        assigned: the optimizer of each parameter; a name or a class gives no numbers.
        names_of: id of a tensor of the model or of its base -> the names that the parameter has in the model.
        learning: names of the parameters that require a gradient.
        given: which of "lr", "weight_decay" and "eps" the user gave apart, so that those of the groups do not count.

    Raises:
        InvalidInputError: groups of an instance differ, and it is not known which of them a parameter belongs to.
    """
    found: dict[str, GroupNumbers] = {}
    for optimizer in {id(each): each for each in assigned.values()}.values():
        if not isinstance(optimizer, torch.optim.Optimizer):
            continue
        names = [name for name, each in assigned.items() if each is optimizer]
        groups = group_numbers(optimizer)
        differing = {key: None for group in groups for key in group.differs_from(groups[0]) if key not in given}
        if not differing:
            found.update(dict.fromkeys(names, groups[0]))
            continue
        placed = _places(optimizer, names_of, set(assigned))
        lost = next((name for name in names if name not in placed and name in learning), None)
        if lost is not None:
            raise InvalidInputError(_not_placed(optimizer, tuple(differing), lost, is_known=bool(placed)))
        found.update({name: groups[placed[name]] for name in names if name in placed})
    return found


def _places(
    optimizer: torch.optim.Optimizer, names_of: Mapping[int, Collection[str]], known: Collection[str]
) -> dict[str, int]:
    """Return the index of the group in which each parameter lies, by identity or else by the names in the groups.

    Args:
        optimizer: an optimizer instance.
        names_of: id of a tensor -> the names that the parameter has in the model.
        known: names of all parameters.
    """
    found: dict[str, int] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter, name in zip(group["params"], names_in(group), strict=True):
            plain = plain_name(name, known)
            for each in names_of.get(id(parameter), (plain,) if plain in known else ()):
                found[each] = index
    return found


def _not_placed(optimizer: torch.optim.Optimizer, differing: tuple[str, ...], lost: str, is_known: bool) -> str:
    """Return the message that groups of an optimizer differ and that it is not known to which a parameter belongs.

    Args:
        optimizer: the optimizer instance.
        differing: names of the numbers in which its groups differ.
        lost: name of the parameter.
        is_known: whether other parameters were found in the groups.
    """
    kind = type(inner_optimizer(optimizer)).__name__
    whose = (
        "is in none of them" if is_known else "cannot be found in them: they hold neither the model's nor the base's"
    )
    return (
        f"optimizer: the groups of this {kind} differ in {', '.join(differing)}, and {lost!r} {whose}.\n"
        f"  Expected: groups over the parameters of the model or of `base`, or groups with their names.\n"
        f"  To fix: make the {kind} of the parameters of the very model that is given as model or base, or give their "
        f"names, {{'params': list(model.named_parameters()), ...}} for each group"
    )
