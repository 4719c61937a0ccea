"""`check_optimizer`: whether an optimizer in use trains the model's parameters with the planned hyperparameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from abcfx.checks.optimizer_group import REBUILD, LiveGroup, common_faults, common_ratios, differing_options
from abcfx.errors import InvalidInputError
from abcfx.support.patterns import plain_name
from abcfx.support.verdict import CheckResult, CheckRow, Verdict
from abcfx.theory.optimizer_classes import inner_optimizer, known_name
from abcfx.theory.optimizer_groups import as_option, given_options
from abcfx.theory.optimizers import OptimizerFamily, family
from abcfx.transformed import Transformed


@dataclass(frozen=True, kw_only=True)
class OptimizerCheck(CheckResult[CheckRow]):
    """Result of `check_optimizer`: a row for each parameter group of the optimizer, and a last one for all parameters.

    Further rows stand between them where there is something to say: on the optimizer's class, on numbers given to its
    constructor that have no effect, on parameters frozen at planning that train now, or the reverse.

    Attributes:
        rows: name of the group or topic, verdict, reason, and the line that fixes it.
    """

    TITLE: ClassVar[str] = "optimizer check"


def check_optimizer(
    optimizer: torch.optim.Optimizer, result: Transformed, *, module: nn.Module | None = None
) -> OptimizerCheck:
    """Check, at any moment of a run, that an optimizer trains the module's parameters with the numbers of the plan.

    A scheduler may multiply all rates by one number. One that sets them all alike, or a checkpoint of another run that
    brings its own groups, undoes the transform without a word.

    Main arguments:
        optimizer: made from `result.param_groups`, or from `result.groups_for(...)` if there are several.
        result: the return value of `transform`.

    Other arguments:
        module: the module that trains, if it is not `result.module` or a wrapper (DDP, torch.compile) around it: a
            copy, or one with real weights where the plan was made on the meta device.

    Returns:
        An `OptimizerCheck`. A row that fails names the group whose lr, eps, weight decay or options are off and the
        value that it should have, an object that is not the module's parameter, a parameter that is in no group, or a
        number that was given to the optimizer's constructor and is overruled by the groups. `raise_if_failed()` turns
        it into an error. The result is INCONCLUSIVE where the class of the optimizer is not known.

    Example:
        >>> import abcfx
        >>> result = abcfx.transform(torch.nn.Linear(4, 2), torch.rand(3, 4), optimizer="adamw")
        >>> optimizer = torch.optim.AdamW(result.param_groups)
        >>> bool(check_optimizer(optimizer, result))
        True
    """
    optimizer = _checked(optimizer, result, module)
    parameters = _parameters(result.module if module is None else module, result)
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [LiveGroup.of(index, group, names, result.plan) for index, group in enumerate(optimizer.param_groups)]
    held = [name for group in groups for name in group.planned]
    own, of_class = _judge_class(optimizer, held, result)
    kind, common, families = (
        type(inner_optimizer(optimizer)).__name__,
        common_ratios(groups),
        result.outcome.fixed.families,
    )
    rows = [group.first_fault(kind, families, own, common) for group in groups]
    rows += [*of_class, *common_faults(common), *differing_options(groups), *_shadowed(optimizer, result)]
    rows += _frozen(parameters, held, result)
    rows += _repeated(optimizer, names)
    return OptimizerCheck(rows=(*rows, _completeness(parameters, held, result)))


def _checked(optimizer: torch.optim.Optimizer, result: Transformed, module: nn.Module | None) -> torch.optim.Optimizer:
    """Check the arguments of `check_optimizer`; return the optimizer, taken out of a wrapper if it is in one.

    Raises:
        InvalidInputError: something else was given than an optimizer, a result of `transform`, and a module or None.
    """
    found = optimizer if isinstance(optimizer, torch.optim.Optimizer) else inner_optimizer(optimizer)
    for name, value, kind, fix in (
        (
            "optimizer",
            found,
            torch.optim.Optimizer,
            "torch.optim.AdamW(result.param_groups); one call for each of them",
        ),
        ("result", result, Transformed, "result = abcfx.transform(...), not result.module"),
        ("module", module, (nn.Module, type(None)), "module=result.module, or a wrapper around it"),
    ):
        if not isinstance(value, kind):
            raise InvalidInputError(f"check_optimizer: {name} is a {type(value).__name__}.\n  To fix: {fix}")
    return found


def _parameters(module: nn.Module, result: Transformed) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by their names in the plan; those that the plan does not know by their own.

    The transformed model may be a part of the module, as in a LightningModule that holds it.

    Args:
        module: the transformed module, a wrapper around it, a module that holds it, or a copy of it.
        result: the transformed model, with the planned numbers.
    """

    def named(part: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of `module` by name; those that are inside `part` by the names they have there."""
        own = {id(each): plain_name(name, result.plan) for name, each in part.named_parameters()}
        return {own.get(id(each), name): each for name, each in module.named_parameters()}

    candidates = map(named, module.modules())
    return next((found for found in candidates if result.plan.keys() <= found.keys()), named(module))


def _repeated(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Iterator[CheckRow]:
    """Yield a failing row for each parameter that the optimizer holds more than once: it takes several steps for one.

    Args:
        optimizer: the optimizer in use.
        names: id of each parameter of the module -> its name.
    """
    counts = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    for identity, count in counts.items():
        if count > 1:
            name = names.get(identity, "a parameter of another model")
            reason = f"the optimizer holds it {count} times, and updates it as often in each step"
            yield CheckRow(name=name, verdict=Verdict.FAIL, reason=reason, fix=REBUILD)


def _judge_class(
    optimizer: torch.optim.Optimizer, held: Collection[str], result: Transformed
) -> tuple[OptimizerFamily | None, list[CheckRow]]:
    """Find out how the optimizer's class scales its updates, and judge whether the planned numbers are made for it.

    Args:
        optimizer: the optimizer in use.
        held: names of the planned parameters in its groups.
        result: the transformed model, with the planned numbers.

    Returns:
        (family, rows): how the optimizer's updates scale, None if its class is not known; rows with FAIL for a known
        class that cannot be used, INCONCLUSIVE for an unknown one, and none if all is well.
    """
    try:
        return family(optimizer), []
    except InvalidInputError as error:
        kind = type(inner_optimizer(optimizer))
        path = f"{kind.__module__}.{kind.__qualname__}"
        if known_name(kind) is not None:
            return None, [CheckRow(name=path, verdict=Verdict.FAIL, reason=str(error))]
    planned = sorted({each.name for name in held if (each := result.outcome.fixed.families[name]).is_built_in})
    if not planned:  # the user declared what the optimizer does, and nothing is known to compare that with
        return None, []
    reason = f"the plan is for {', '.join(planned)}, and abcfx does not know whether this class does the same"
    fix = f"{kind.__name__}.abcfx_family = abcfx.OptimizerFamily(...), with the size of its update"
    return None, [CheckRow(name=path, verdict=Verdict.INCONCLUSIVE, reason=reason, fix=fix)]


def _shadowed(optimizer: torch.optim.Optimizer, result: Transformed) -> Iterator[CheckRow]:
    """Yield a failing row for each constructor argument of the optimizer that the groups overrule.

    A number is fine if it is the one that `transform` was given, or if `transform` was given none and some group has
    it.

    Args:
        optimizer: the optimizer in use.
        result: the transformed model, whose options are compared.
    """
    options = result.outcome.options
    asked = {"weight_decay": options.weight_decay, "eps": options.eps}
    for key, value in given_options(optimizer).items():
        planned = asked.get(key)
        stands = any(as_option(group.get(key)) == value for group in optimizer.param_groups)
        if planned == value or (planned is None and stands):
            continue
        fix = f"transform(..., {key}={value!r})"
        if key not in asked:
            fix = f"give {key}={value!r} to the optimizer instance that transform gets, or write it into the groups"
        kind = type(inner_optimizer(optimizer)).__name__
        reason = f"{kind}(..., {key}={value!r}) has no effect: every group brings a value of its own"
        yield CheckRow(name=f"{key} of the constructor", verdict=Verdict.FAIL, reason=reason, fix=fix)


def _frozen(parameters: dict[str, nn.Parameter], held: Collection[str], result: Transformed) -> Iterator[CheckRow]:
    """Yield rows for parameters that were frozen when the plan was made and train now (FAIL), and the reverse (WEAK).

    Args:
        parameters: all parameters of the module by name.
        held: names of the planned parameters in the optimizer's groups.
        result: the transformed model.
    """
    kinds, inside = {result.plan[name].optimizer for name in held}, set(held)
    for name, parameter in parameters.items():
        plan = result.plan.get(name)
        if plan is None or plan.trainable == parameter.requires_grad or plan.optimizer not in kinds:
            continue
        fix = f"set requires_grad of {name!r} as it is in training before transform"
        if parameter.requires_grad and name in inside:
            reason = "it was frozen when the plan was made, and trains now: no rate was solved for it"
            yield CheckRow(name=name, verdict=Verdict.FAIL, reason=reason, fix=fix)
        elif not parameter.requires_grad:
            reason = (
                "it trained when the plan was made, and is frozen now: rates of others may be lower than they need be"
            )
            yield CheckRow(name=name, verdict=Verdict.WEAK, reason=reason, fix=fix)


def _completeness(parameters: dict[str, nn.Parameter], held: Collection[str], result: Transformed) -> CheckRow:
    """Return the row "every parameter": FAIL names the first trainable parameter that is in no group of the optimizer.

    Parameters planned for another optimizer than those in the groups do not count as missing.

    Args:
        parameters: all parameters of the module by name.
        held: names of the planned parameters in the optimizer's groups.
        result: the transformed model.
    """
    kinds, in_groups = {result.plan[name].optimizer for name in held}, set(held)
    learning = [name for name, parameter in parameters.items() if parameter.requires_grad and name not in in_groups]
    missing = [name for name in learning if name not in result.plan or result.plan[name].optimizer in kinds]
    if missing or (learning and not held):
        first = (missing or learning)[0]
        reason = f"{first!r} is in no group of this optimizer, so it does not learn"
        if first not in result.plan:
            reason = f"{first!r} of the module was not there when the plan was made, and is in no planned group"
        elif not result.plan[first].trainable:
            reason += "; it was frozen when the plan was made"
        return CheckRow(name="every parameter", verdict=Verdict.FAIL, reason=reason, fix=REBUILD)
    return CheckRow(name="every parameter", verdict=Verdict.PASS)
