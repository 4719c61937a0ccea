"""`check_optimizer`: whether the groups of an optimizer still stand to each other as they were planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import ClassVar, Literal

import torch

from abcfx.errors import InvalidInputError
from abcfx.plan.groups import OptimizerGroup
from abcfx.plan.spec import ParameterPlan
from abcfx.support.verdict import CheckResult, CheckRow, Verdict
from abcfx.theory.optimizers import OptimizerFamily, family
from abcfx.transformed import Transformed

Key = Literal["lr", "weight_decay", "eps"]
KEYS: tuple[Key, ...] = ("lr", "weight_decay", "eps")
_TOLERANCE = 1e-5  # of the ratio of a value to its plan
_REBUILD = "build the optimizer from all of result.param_groups, or abcfx.param_groups(module, result.spec)"


@dataclass(frozen=True, kw_only=True)
class OptimizerCheck(CheckResult[CheckRow]):
    """Result of `check_optimizer`: a row for each group of the optimizer, and one for all parameters together."""

    TITLE: ClassVar[str] = "optimizer check"


def check_optimizer(optimizer: torch.optim.Optimizer, result: Transformed) -> OptimizerCheck:
    """Check, at any moment of a run, that the rates of an optimizer stand to each other as they were planned.

    A scheduler may multiply all rates by one number. One that sets them all alike, or a checkpoint of another run that
    brings its own groups, undoes the transform without a word.

    Main arguments:
        optimizer: made from `result.param_groups`, or from `result.groups_for(...)` if there are several.
        result: the return value of `transform`.

    Returns:
        An `OptimizerCheck`. A row that fails names the group whose lr, eps or weight decay is off and the value that it
        should have, or a parameter that is in no group. `raise_if_failed()` turns it into an error.

    Example:
        >>> import abcfx
        >>> result = abcfx.transform(torch.nn.Linear(4, 2), torch.rand(3, 4), optimizer="adamw")
        >>> optimizer = torch.optim.AdamW(result.param_groups)
        >>> bool(check_optimizer(optimizer, result))
        True
    """
    names = {id(parameter): name for name, parameter in result.module.named_parameters()}
    groups = [_Group.of(index, group, names, result.plan) for index, group in enumerate(optimizer.param_groups)]
    held = [name for group in groups for name in group.planned]
    common = {key: _common_ratio(key, groups) for key in KEYS}
    own = _family_of(optimizer)
    rows = []
    for group in groups:
        found = next(_faults(group, type(optimizer).__name__, own, common), None)
        rows.append(CheckRow(name=group.name, verdict=Verdict.PASS) if found is None else found)
    return OptimizerCheck(rows=(*rows, _completeness(held, result)))


@dataclass(frozen=True)
class _Group:
    """One group of the optimizer.

    Attributes:
        name: for the report.
        values: the group's own dict.
        planned: plan of every parameter of the model in it.
        foreign: shapes of parameters that are not the model's.
    """

    name: str
    values: OptimizerGroup
    planned: dict[str, ParameterPlan]
    foreign: list[tuple[int, ...]]

    @staticmethod
    def of(index: int, group: OptimizerGroup, names: Mapping[int, str], plan: Mapping[str, ParameterPlan]) -> _Group:
        """Find the plans of a group's parameters, by identity or by the names that the group brings."""
        given = group.get("param_names") or [""] * len(group["params"])
        planned: dict[str, ParameterPlan] = {}
        foreign = []
        for parameter, own in zip(group["params"], given, strict=True):
            name = names.get(id(parameter), own)
            if name in plan:
                planned[name] = plan[name]
            else:
                foreign.append(tuple(parameter.shape))
        first = next(iter(planned), "")
        told = repr(first) + (f" and {len(group['params']) - 1} more" if len(group["params"]) > 1 else "")
        return _Group(f"Optimizer group {index}" + (f" ({told})" if first else ""), group, planned, foreign)

    def ratios(self, key: Key) -> dict[str, float]:
        """Return by which factor the group's value differs from the plan, for parameters that have one planned."""
        if not isinstance(self.values.get(key), int | float | torch.Tensor):  # no eps, or a pair of them
            return {}
        planned = {name: _planned(plan, key) for name, plan in self.planned.items()}
        return {name: float(self.values[key]) / value for name, value in planned.items() if value}

    def fails(self, reason: str, fix: str) -> CheckRow:
        """Make the row that says what is wrong with this group."""
        return CheckRow(name=self.name, verdict=Verdict.FAIL, reason=reason, fix=fix)


def _planned(plan: ParameterPlan, key: Key) -> float:
    """Return a planned value; 0 for an eps that the optimizer does not have."""
    return {"lr": plan.lr, "weight_decay": plan.weight_decay, "eps": plan.eps or 0.0}[key]


def _family_of(optimizer: torch.optim.Optimizer) -> OptimizerFamily | None:
    """Return what is known of an optimizer's updates; None for one that only the user knows."""
    try:
        return family(optimizer)
    except InvalidInputError:
        return None


def _common_ratio(key: Key, groups: list[_Group]) -> float:
    """Return the factor by which a scheduler has multiplied the values of most parameters."""
    ratios = [ratio for group in groups for ratio in group.ratios(key).values()]
    return median_low(ratios) if ratios else 0.0


def _faults(
    group: _Group, optimizer: str, own: OptimizerFamily | None, common: Mapping[Key, float]
) -> Iterator[CheckRow]:
    if group.foreign:
        reason = f"it holds a parameter of shape {group.foreign[0]} that is not one of the transformed model's"
        yield group.fails(reason, _REBUILD)
    if own is not None:
        yield from _family_faults(group, optimizer, own)
    for key in KEYS:
        yield from _ratio_faults(key, group, common[key])


def _family_faults(group: _Group, optimizer: str, own: OptimizerFamily) -> Iterator[CheckRow]:
    """Find parameters planned for an optimizer whose updates have another size, or that decays in another way."""
    for name, plan in group.planned.items():
        planned = family(plan.optimizer)
        other_decay = bool(plan.weight_decay) and own.decay != planned.decay
        if (own.update, own.shape) != (planned.update, planned.shape) or other_decay:
            reason = (
                f"{optimizer} holds {name!r}, whose numbers were planned for {planned.name}: its update or its weight "
                f"decay is another"
            )
            yield group.fails(reason, f"transform(..., optimizer={own.name!r})")


def _ratio_faults(key: Key, group: _Group, common: float) -> Iterator[CheckRow]:
    """Find values that differ from the plan by another factor than the common one."""
    for name, ratio in group.ratios(key).items():
        if abs(ratio - common) > _TOLERANCE * max(abs(common), abs(ratio)):
            value, planned = float(group.values[key]), _planned(group.planned[name], key)
            reason = (
                f"it has {key} = {value:.6g}; expected {planned * common:.6g}, which is {key} = {planned:.6g} of the "
                f"plan times {common:.6g} as in the other groups. A scheduler or a loaded checkpoint has changed it"
            )
            pairs = "zip(optimizer.param_groups, result.param_groups)"
            restore = f"for group, own in {pairs}: group[{key!r}] = own[{key!r}]"
            yield group.fails(reason, f"restore the groups,\n  {restore}")


def _completeness(held: list[str], result: Transformed) -> CheckRow:
    """Judge whether every parameter that learns with this optimizer's kind is in one of its groups."""
    kinds, in_groups = {result.plan[name].optimizer for name in held}, set(held)
    wanted = [name for group in result.param_groups for name in group["param_names"]]
    missing = [name for name in wanted if name not in in_groups and result.plan[name].optimizer in kinds]
    if missing or not held:
        first = missing[0] if missing else wanted[0]
        reason = f"{first!r} is in no group of this optimizer, so it does not learn"
        return CheckRow(name="every parameter", verdict=Verdict.FAIL, reason=reason, fix=_REBUILD)
    return CheckRow(name="every parameter", verdict=Verdict.PASS)
