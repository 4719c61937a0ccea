"""One parameter group of an optimizer in use, compared with what was planned for its parameters."""

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
from abcfx.theory.optimizer_groups import IMPLEMENTATION, MOMENTUM, as_number, as_option, moves_momentum, names_in
from abcfx.theory.optimizers import OptimizerFamily

Key = Literal["lr", "weight_decay", "eps"]
KEYS: tuple[Key, ...] = ("lr", "weight_decay", "eps")
REBUILD = "build the optimizer from all of result.param_groups, or abcfx.param_groups(module, result.spec)"
# What groups hold beside the options of an optimizer.
NOT_OPTIONS = IMPLEMENTATION | {"params", "param_names", "lr_scale", "name", "group_name"}
NOT_OPTIONS |= {"initial_lr", "max_lr", "min_lr"}  # a scheduler's
_TOLERANCE = 1e-5  # of the ratio of a value to its plan


@dataclass(frozen=True)
class LiveGroup:
    """One parameter group of an optimizer in use, beside what `transform` planned for its parameters.

    Attributes:
        name: the group's number and its first parameter, for messages.
        values: the group's dict, as in `optimizer.param_groups`.
        planned: planned lr, weight decay, eps and options of each parameter in the group that belongs to the model.
        strangers: descriptions of what else the group holds, such as parameters of another model.
    """

    name: str
    values: OptimizerGroup
    planned: dict[str, ParameterPlan]
    strangers: list[str]

    @staticmethod
    def of(index: int, group: OptimizerGroup, names: Mapping[int, str], plan: Mapping[str, ParameterPlan]) -> LiveGroup:
        """Make a `LiveGroup`: find the plan of each parameter of the group, and describe the ones that have no plan.

        Args:
            index: number of the group in the optimizer.
            group: the group's dict, as in `optimizer.param_groups`.
            names: id of each parameter of the module -> its name.
            plan: planned numbers of each parameter, by name.
        """
        planned: dict[str, ParameterPlan] = {}
        strangers = []
        for parameter, called in zip(group["params"], names_in(group), strict=True):
            name, was = names.get(id(parameter)), plain_name(called, plan)
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

    def ratios_to_plan(self, key: Key) -> dict[str, float]:
        """Return parameter name -> the group's present value of a number divided by the planned one.

        Parameters for which 0 or nothing is planned are left out; so are all if the group has no such single number.

        Args:
            key: "lr", "weight_decay" or "eps".
        """
        value = as_number(self.values.get(key))
        if value is None:  # no eps, or a pair of them
            return {}
        planned = {name: planned_number(plan, key) for name, plan in self.planned.items()}
        return {name: value / number for name, number in planned.items() if number}

    def first_fault(
        self, optimizer: str, family_of: Mapping[str, OptimizerFamily], own: OptimizerFamily | None, common: Common
    ) -> CheckRow:
        """Return the row of this group in the check: its first fault, with the line that fixes it, or PASS.

        Args:
            optimizer: name of the optimizer's class.
            family_of: for each parameter, the kind of optimizer (size of its updates) that it was planned for.
            own: the kind of the optimizer in use; None where its class is not known.
            common: for "lr", "weight_decay" and "eps", the ratio of present to planned value in most groups; a
                scheduler that multiplies all rates alike makes it differ from 1.
        """
        faults = self._faults(optimizer, family_of, own, common)
        return next(faults, CheckRow(name=self.name, verdict=Verdict.PASS))

    def _faults(
        self, optimizer: str, family_of: Mapping[str, OptimizerFamily], own: OptimizerFamily | None, common: Common
    ) -> Iterator[CheckRow]:
        """Yield a failing row for each fault of the group: parameters, kind of optimizer, numbers and options.

        Args:
            optimizer: name of the optimizer's class.
            family_of: for each parameter, the kind of optimizer (size of its updates) that it was planned for.
            own: the kind of the optimizer in use; None where its class is not known.
            common: for "lr", "weight_decay" and "eps", the ratio of present to planned value in most groups.
        """
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
        """Yield a failing row for each parameter planned for an optimizer with other updates, eps or kind of decay.

        Args:
            optimizer: name of the optimizer's class.
            family_of: for each parameter, the kind of optimizer that it was planned for.
            own: the kind of the optimizer in use.
        """
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
        """Yield a failing row where the group has a number and 0 was planned, or 0 where decay or eps was planned.

        Args:
            key: "lr", "weight_decay" or "eps".
        """
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
        """Yield a failing row for each parameter whose ratio of present to planned value is not the common ratio.

        Args:
            key: "lr", "weight_decay" or "eps".
            common: the ratio in most groups, which a scheduler has set.
        """
        for name, ratio in self.ratios_to_plan(key).items():
            if ratio < 0:
                yield self._fails(
                    f"it has {key} = {ratio * planned_number(self.planned[name], key):.6g}, which is below 0",
                    _restore(key),
                )
            elif not abs(ratio - common) <= _TOLERANCE * max(abs(common), abs(ratio)):  # nan is no equal of itself
                planned = planned_number(self.planned[name], key)
                yield self._fails(
                    f"it has {key} = {ratio * planned:.6g}; expected {planned * common:.6g}, which is {key} = "
                    f"{planned:.6g} of the plan times {common:.6g} as in the other groups. A scheduler or a loaded "
                    f"checkpoint has changed it",
                    _restore(key),
                )

    def _option_faults(self) -> Iterator[CheckRow]:
        """Yield a failing row for each option, such as betas, that differs from the planned one.

        Options are planned where `transform` was given an optimizer instance, from which it copied them.
        """
        skipped = MOMENTUM if moves_momentum(self.values) else frozenset[str]()
        for name, plan in self.planned.items():
            for key, planned in plan.options.items():
                if key in skipped or key not in self.values:
                    continue
                if (value := as_option(self.values[key])) != as_option(planned):
                    reason = f"it has {key} = {value!r} for {name!r}; expected {planned!r}, as planned"
                    yield self._fails(reason, _restore(key))

    def _fails(self, reason: str, fix: str) -> CheckRow:
        """Make a failing row of `check_optimizer`, named after this parameter group.

        Args:
            reason: what is wrong.
            fix: the line of code that fixes it.
        """
        return CheckRow(name=self.name, verdict=Verdict.FAIL, reason=reason, fix=fix)


Common = Mapping[Key, float]


def common_ratios(groups: Sequence[LiveGroup]) -> Common:
    """Return for "lr", "weight_decay" and "eps" the median, over all parameters, of present value / planned value.

    It is 1 without a scheduler, and what a scheduler has multiplied all groups by otherwise; 0 if nothing is planned.
    """
    return {key: _median(ratio for group in groups for ratio in group.ratios_to_plan(key).values()) for key in KEYS}


def common_faults(common: Common) -> Iterator[CheckRow]:
    """Yield a WEAK row if weight decay or eps differs from the plan by one factor in all groups.

    A schedule of the user may do that on purpose; it may also be a mistake.

    Args:
        common: median ratio of present to planned value, by "lr", "weight_decay" and "eps".
    """
    for key in ("weight_decay", "eps"):
        ratio = common[key]
        if ratio and abs(ratio - 1.0) > _TOLERANCE:
            reason = f"every group has {ratio:.6g} times the planned {key}; right if a schedule of your own does that"
            yield CheckRow(name=f"{key} of all groups", verdict=Verdict.WEAK, reason=reason, fix=_restore(key))


def differing_options(groups: Sequence[LiveGroup]) -> Iterator[CheckRow]:
    """Yield a WEAK row for each option, such as betas, in which groups differ and of which the plan says nothing.

    The plan has such options only from an optimizer instance that `transform` was given.
    """
    planned = {key for group in groups for plan in group.planned.values() for key in plan.options}
    keys = dict.fromkeys(key for group in groups for key in group.values)
    for key in keys:
        if key in {*KEYS, *planned, *NOT_OPTIONS} or any(moves_momentum(group.values) for group in groups):
            continue
        values = [as_option(group.values[key]) for group in groups if group.planned and key in group.values]
        if len(set(values)) > 1:
            reason = f"groups differ in it ({', '.join(map(repr, dict.fromkeys(values)))}), which nobody planned"
            fix = "give an optimizer instance with these groups to transform, which plans with their numbers"
            yield CheckRow(name=f"{key} of the groups", verdict=Verdict.WEAK, reason=reason, fix=fix)


def _restore(key: str) -> str:
    """Return the lines of code that write one planned number ("lr", "weight_decay", "eps") back into every group."""
    pairs = "zip(optimizer.param_groups, result.param_groups)"
    return f"restore the groups,\n  for group, own in {pairs}: group[{key!r}] = own[{key!r}]"


def _median(ratios: Iterable[float]) -> float:
    """Return the median (the lower one of two) of the finite ratios; 0 if there are none."""
    found = [ratio for ratio in ratios if math.isfinite(ratio)]
    return median_low(found) if found else 0.0


def planned_number(plan: ParameterPlan, key: Key) -> float:
    """Return one planned number of a parameter; 0 for an eps that its optimizer does not have.

    Args:
        plan: everything planned for the parameter.
        key: "lr", "weight_decay" or "eps".
    """
    return {"lr": plan.lr, "weight_decay": plan.weight_decay, "eps": plan.eps or 0.0}[key]
