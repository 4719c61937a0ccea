"""One group of a live optimizer beside the plan of its parameters, with what is wrong in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from abcfx.plan.groups import OptimizerGroup
from abcfx.plan.spec import ParameterPlan
from abcfx.support.patterns import plain_name
from abcfx.support.verdict import CheckRow, Verdict
from abcfx.theory.optimizer_groups import MOMENTUM, as_number, as_option, moves_momentum
from abcfx.theory.optimizers import OptimizerFamily

Key = Literal["lr", "weight_decay", "eps"]
KEYS: tuple[Key, ...] = ("lr", "weight_decay", "eps")
REBUILD = "build the optimizer from all of result.param_groups, or abcfx.param_groups(module, result.spec)"
_TOLERANCE = 1e-5  # of the ratio of a value to its plan


@dataclass(frozen=True)
class LiveGroup:
    """One group of a live optimizer.

    Attributes:
        name: the group's number and its first parameter, for the report.
        values: the group's own dict.
        planned: plan of every parameter in the group that is the module's.
        strangers: what the group holds besides, in words.
    """

    name: str
    values: OptimizerGroup
    planned: dict[str, ParameterPlan]
    strangers: list[str]

    @staticmethod
    def of(index: int, group: OptimizerGroup, names: Mapping[int, str], plan: Mapping[str, ParameterPlan]) -> LiveGroup:
        """Find the plans of a group's parameters. An object that the module does not hold is a stranger to it.

        Args:
            index: number of the group.
            group: the optimizer's dict.
            names: id of each parameter of the module -> its name.
            plan: the plan of each parameter.
        """
        given = group.get("param_names") or [""] * len(group["params"])
        planned: dict[str, ParameterPlan] = {}
        strangers = []
        for parameter, called in zip(group["params"], given, strict=True):
            name, was = names.get(id(parameter)), plain_name(str(called), plan)
            if name is not None and name in plan:
                planned[name] = plan[name]
            elif name is not None:
                strangers.append(f"{name!r}, which the module got after it was planned")
            elif was in plan:
                strangers.append(f"a tensor for {was!r} that the module no longer has: its parameter is another object")
            else:
                shape = tuple(parameter.shape)
                strangers.append(f"a parameter of shape {shape} that is not one of the transformed model's")
        first = next(iter(planned), "")
        told = repr(first) + (f" and {len(group['params']) - 1} more" if len(group["params"]) > 1 else "")
        return LiveGroup(f"Optimizer group {index}" + (f" ({told})" if first else ""), group, planned, strangers)

    def ratios(self, key: Key) -> dict[str, float]:
        """Return by which factor the group's value differs from the plan, for parameters that have one planned."""
        value = as_number(self.values.get(key))
        if value is None:  # no eps, or a pair of them
            return {}
        planned = {name: planned_number(plan, key) for name, plan in self.planned.items()}
        return {name: value / number for name, number in planned.items() if number}

    def first_fault(
        self, optimizer: str, family_of: Mapping[str, OptimizerFamily], own: OptimizerFamily | None, common: Common
    ) -> CheckRow:
        """Return the row of this group: its first fault, or PASS.

        Args:
            optimizer: name of the optimizer's class.
            family_of: the family that each parameter was planned for.
            own: the family of the optimizer; None where it is not known.
            common: by which factor a scheduler has multiplied each number everywhere.
        """
        faults = self._faults(optimizer, family_of, own, common)
        return next(faults, CheckRow(name=self.name, verdict=Verdict.PASS))

    def _faults(
        self, optimizer: str, family_of: Mapping[str, OptimizerFamily], own: OptimizerFamily | None, common: Common
    ) -> Iterator[CheckRow]:
        for stranger in self.strangers:
            other = "; where another module trains, check_optimizer(optimizer, result, module=that)"
            yield self._fails(f"it holds {stranger}", REBUILD + other)
        if own is not None:
            yield from self._family_faults(optimizer, family_of, own)
        for key in KEYS:
            yield from self._zero_faults(key)
            yield from self._ratio_faults(key, common[key])
        yield from self._option_faults()

    def _family_faults(
        self, optimizer: str, family_of: Mapping[str, OptimizerFamily], own: OptimizerFamily
    ) -> Iterator[CheckRow]:
        """Find parameters planned for an optimizer whose updates have another size, or that decays in another way."""
        for name, plan in self.planned.items():
            planned = family_of[name]
            decays = bool(plan.weight_decay) and own.decay != planned.decay
            if decays or (own.update, own.shape, own.has_eps) != (planned.update, planned.shape, planned.has_eps):
                yield self._fails(
                    f"{optimizer} holds {name!r}, whose numbers were planned for {planned.name}: its update, eps or "
                    f"weight decay is another",
                    f"transform(..., optimizer={own.name!r})",
                )

    def _zero_faults(self, key: Key) -> Iterator[CheckRow]:
        """Find numbers that are not 0 though 0 was planned, and decay or eps of 0 that were planned."""
        value = as_number(self.values.get(key))
        for name, plan in self.planned.items():
            planned = planned_number(plan, key)
            if value is None or (key == "eps" and plan.eps is None):
                continue
            if (not planned and value) or (planned and not value and key != "lr"):
                yield self._fails(
                    f"it has {key} = {value:.6g} for {name!r}; expected {planned:.6g}, as planned",
                    f"{_restore(key)}; or plan with another {key}, transform(..., {key}=...)",
                )

    def _ratio_faults(self, key: Key, common: float) -> Iterator[CheckRow]:
        """Find values that differ from the plan by another factor than the common one."""
        for name, ratio in self.ratios(key).items():
            if not abs(ratio - common) <= _TOLERANCE * max(abs(common), abs(ratio)):  # nan is no equal of itself
                planned = planned_number(self.planned[name], key)
                yield self._fails(
                    f"it has {key} = {ratio * planned:.6g}; expected {planned * common:.6g}, which is {key} = "
                    f"{planned:.6g} of the plan times {common:.6g} as in the other groups. A scheduler or a loaded "
                    f"checkpoint has changed it",
                    _restore(key),
                )

    def _option_faults(self) -> Iterator[CheckRow]:
        """Find betas and other options that the plan took over from an optimizer instance and that differ now."""
        skipped = MOMENTUM if moves_momentum(self.values) else frozenset[str]()
        for name, plan in self.planned.items():
            for key, planned in plan.options.items():
                if key in skipped or key not in self.values:
                    continue
                if (value := as_option(self.values[key])) != as_option(planned):
                    reason = f"it has {key} = {value!r} for {name!r}; expected {planned!r}, as planned"
                    yield self._fails(reason, _restore(key))

    def _fails(self, reason: str, fix: str) -> CheckRow:
        """Make the row that says what is wrong with this group."""
        return CheckRow(name=self.name, verdict=Verdict.FAIL, reason=reason, fix=fix)


Common = Mapping[Key, float]


def common_ratios(groups: Sequence[LiveGroup]) -> Common:
    """Return by which factor a scheduler has multiplied each number of most parameters."""
    return {key: _median(ratio for group in groups for ratio in group.ratios(key).values()) for key in KEYS}


def common_faults(common: Common) -> Iterator[CheckRow]:
    """Find weight decay and eps that are another multiple of the plan in all groups: a schedule, or a mistake."""
    for key in ("weight_decay", "eps"):
        ratio = common[key]
        if ratio and abs(ratio - 1.0) > _TOLERANCE:
            reason = f"every group has {ratio:.6g} times the planned {key}; right if a schedule of your own does that"
            yield CheckRow(name=f"{key} of all groups", verdict=Verdict.WEAK, reason=reason, fix=_restore(key))


def _restore(key: str) -> str:
    """Return the lines that write a planned number back into every group."""
    pairs = "zip(optimizer.param_groups, result.param_groups)"
    return f"restore the groups,\n  for group, own in {pairs}: group[{key!r}] = own[{key!r}]"


def _median(ratios: Iterable[float]) -> float:
    found = [ratio for ratio in ratios if math.isfinite(ratio)]
    return median_low(found) if found else 0.0


def planned_number(plan: ParameterPlan, key: Key) -> float:
    """Return a planned value; 0 for an eps that the optimizer does not have."""
    return {"lr": plan.lr, "weight_decay": plan.weight_decay, "eps": plan.eps or 0.0}[key]
