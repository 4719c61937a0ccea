"""`grow`: fill a larger model so that it computes what a trained smaller one does, and carry its optimizer along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from abcfx.capture.examples import canonical
from abcfx.errors import GrowthError, InvalidInputError
from abcfx.exponents.depth import is_serial, residual_branches
from abcfx.growing.fill.depth import ORDERS, deepen, source_of
from abcfx.growing.fill.width import widen
from abcfx.growing.output_gap import output_gap, tolerance
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.refusals import refusals
from abcfx.growing.report import render
from abcfx.growing.state import grown_groups, grown_state, growth_of, refuse_unknown_state
from abcfx.pairing.factors import as_deep_as_base
from abcfx.pairing.graphs import Blocks, match_blocks
from abcfx.theory.optimizers import family


@dataclass(frozen=True)
class Step:
    """One pass of a growth: its name, plain data to repeat it with, and the difference of outputs after it.

    `difference`: largest difference of outputs, relative to their RMS. `kept`: whether the function was to be kept.
    """

    name: str
    data: Mapping[str, Any]
    difference: float
    kept: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grown:
    """A grown model.

    Attributes:
        module: the large model, filled; its own class.
        param_groups: one per parameter, with the learning rates, eps and weight decay that keep the course; empty
            without an optimizer.
        optimizer_state: what an optimizer of the same class over `param_groups` loads; None without an optimizer.
        steps: the passes, each with the difference of outputs after it.
        rates: parameter -> factor on its learning rate with Adam and its kin: large width / small width ** -c.
    """

    module: nn.Module
    param_groups: list[dict[str, Any]]
    optimizer_state: dict[str, Any] | None
    steps: tuple[Step, ...]
    rates: Mapping[str, float] = field(repr=False)

    @property
    def plan(self) -> list[dict[str, Any]]:
        """The passes as JSON: for each tensor of `widen` its source, the factors of its dims and the scale."""
        return [{"pass": step.name, **step.data, "difference": step.difference} for step in self.steps]

    @property
    def report(self) -> str:
        """What was done, in words."""
        return render(self)

    def __str__(self) -> str:
        return self.report


def grow(
    small: nn.Module,
    into: nn.Module | Callable[[], nn.Module],
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    noise: float = 0.1,
    seed: int = 0,
    depth: str = "stack",
    zero_output: bool = True,
) -> Grown:
    """Fill a larger model of the same architecture so that it computes what the small one does.

    Every tensor is tiled along the dims that grow and multiplied by a power of their ratio, as the log-scale solve
    over the layer DAG says; blocks that are new add zero to the stream. Wider and deeper at once is widened first.

    Args:
        small: the trained model; it is not changed.
        into: the larger model, which is filled in place, or a function that builds it.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        optimizer: the small model's optimizer, whose state and hyperparameters are carried along.
        noise: zero-sum noise on contracted weights, relative to their RMS, which lets copies part without changing the
            function; up to sqrt(ratio - 1) is useful, 0 keeps the training run of the small model.
        seed: of the noise.
        depth: where new blocks go: "stack" (0 1 0 1), "interleave" (0 0 1 1), "append" (0 1 1 1).
        zero_output: set what new blocks add to the stream to zero. Otherwise the function changes, and `steps` says
            by how much.

    Raises:
        GrowthError: the function cannot be kept, or the optimizer's state is not known; nothing has been written then.
            Also where outputs turn out to differ after all, and then the message says that weights were overwritten.
        PairingError, InfeasibleError, CaptureError, UnknownOpError: see `abcfx.transform`.
    """
    if depth not in ORDERS:
        raise InvalidInputError(f"depth={depth!r}; expected one of {', '.join(ORDERS)}.")
    if not noise >= 0.0:
        raise InvalidInputError(f"noise={noise!r}; expected a number that is not negative.")
    large = into if isinstance(into, nn.Module) else into()
    given, named = canonical(args, kwargs)
    given, named = given or (), named or {}
    if optimizer is not None:
        family(optimizer)
        refuse_unknown_state(optimizer)
    blocks = pair_blocks(small, large, depth)
    with as_deep_as_base(large, blocks):
        plan = _plan(small, large, given, named, blocks)
        against = refusals(plan, small, large)
        if against:
            raise GrowthError(_refused(against))
        tensors = dict(small.named_parameters()) | dict(small.named_buffers())
        widen(large, tensors, plan.widenings, noise, plan.noised, seed)
        steps = [_widened(plan, small, large, given, named, noise, seed)]
    zeroed, originals = _new_blocks(plan, blocks, zero_output)
    if blocks.index:
        copies = _copies(blocks, originals)
        deepen(large, copies, zeroed)
        gap = _gap(plan, small, large, given, named)
        steps.append(_deepened(copies, zeroed, gap, gap <= tolerance(plan.factors), zero_output))
    names = {name: plan.widenings[blocks.twin(name)] for name, _ in large.named_parameters()}
    groups, state = list[dict[str, Any]](), None
    if optimizer is not None:
        groups = grown_groups(optimizer, names, small, large)
        kept = {name: each for name, each in names.items() if _is_original(name, blocks, originals)}
        state = grown_state(optimizer, groups, kept, small)
    rates = {name: growth_of(each).s for name, each in names.items()}
    return Grown(large, groups, state, tuple(steps), rates)


def _plan(
    small: nn.Module, large: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], blocks: Blocks
) -> GrowthPlan:
    """The plan of a large model that has as many blocks as the small one for now."""
    plan = plan_growth(small, large, args, kwargs)
    index = {container: {n: n for n in twins.values()} for container, twins in blocks.index.items()}
    for container, (after, before) in sorted(blocks.counts.items()):
        of_layers = any(layer.parameter.startswith(f"{container}.") for _, layer in plan.dag.layers())
        if of_layers and before > 1 and not is_serial(container, plan.dag, replace(blocks, index=index)):
            raise GrowthError(
                f"{container} has {before} submodules in the small model and {after} in the large one, and none feeds "
                f"another.\n  expected: blocks one behind another; more experts side by side would not all be chosen.\n"
                f"  To fix: keep their number, or hold them in tensors (experts, ...), whose number grows with top-k."
            )
    return plan


def pair_blocks(small: nn.Module, large: nn.Module, order: str) -> Blocks:
    """Which block of the small model each block of the large one is a copy of."""
    found = match_blocks(dict(large.named_parameters()), dict(small.named_parameters()))
    index = {}
    for container, twins in found.index.items():
        after, before = found.counts[container]
        if after < before:
            raise GrowthError(
                f"{container} has {before} blocks in the small model and {after} in the large one.\n"
                f"  expected: at least as many. To fix: build the large model with {before} blocks or more."
            )
        numbers, bases = sorted(twins, key=int), sorted(set(_children(small, container)), key=int)
        mapped = {number: bases[source_of(i, before, after, order)] for i, number in enumerate(numbers)}
        alike = all(_names(large, container, n) == _names(small, container, b) for n, b in mapped.items())
        index[container] = mapped if alike else dict(twins)
    return replace(found, index=index)


def _children(model: nn.Module, container: str) -> list[str]:
    return [name for name, _ in model.get_submodule(container).named_children() if name.isdigit()]


def _names(model: nn.Module, container: str, block: str) -> list[str]:
    return [name for name, _ in model.get_submodule(f"{container}.{block}").named_parameters()]


def _refused(against: list[Any]) -> str:
    shown = "\n  ".join(map(str, against[:8]))
    more = f"\n  and {len(against) - 8} more" if len(against) > 8 else ""
    return f"The large model cannot be filled so that it computes what the small one does:\n  {shown}{more}"


def _gap(
    plan: GrowthPlan, small: nn.Module, large: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float:
    return output_gap(small, large, (args, kwargs), (args, kwargs), plan.output_dims())


def _widened(
    plan: GrowthPlan,
    small: nn.Module,
    large: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    noise: float,
    seed: int,
) -> Step:
    gap = _gap(plan, small, large, args, kwargs)
    limit = tolerance(plan.factors)
    if not gap <= limit:
        raise GrowthError(
            f"The large model was filled, and its outputs are {gap:.2g} (relative) off: more than {limit:g}.\n"
            f"  Its weights have been overwritten. To fix: abcfx.verify_growth(small, large, ...) names the first "
            f"tensor that is off."
        )
    tensors = {name: each.to_json() for name, each in plan.widenings.items()}
    return Step("widen", {"tensors": tensors, "noise": noise, "noised": list(plan.noised), "seed": seed}, gap)


def _new_blocks(plan: GrowthPlan, blocks: Blocks, zero: bool) -> tuple[list[str], dict[str, dict[str, str]]]:
    """(parameters to be zeroed, container -> block of the small model -> the first of the large one's made of it)."""
    originals: dict[str, dict[str, str]] = {}
    for container, twins in blocks.index.items():
        for block, twin in twins.items():
            originals.setdefault(container, {}).setdefault(twin, block)
    if not zero or not blocks.index:
        return [], originals
    same = {container: {twin: twin for twin in twins.values()} for container, twins in blocks.index.items()}
    branches = residual_branches(plan.dag, replace(blocks, index=same))
    ends = {name for branch in branches.values() for name in plan.dag.takers(branch.node)}
    zeroed = []
    for container, twins in blocks.index.items():
        for block, twin in twins.items():
            if originals[container][twin] != block:
                prefix = f"{container}.{twin}."
                zeroed += [f"{container}.{block}.{n.removeprefix(prefix)}" for n in ends if n.startswith(prefix)]
    return sorted(zeroed), originals


def _copies(blocks: Blocks, originals: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {
        f"{container}.{block}": f"{container}.{originals[container][twin]}"
        for container, twins in blocks.index.items()
        for block, twin in twins.items()
        if originals[container][twin] != block
    }


def _deepened(copies: dict[str, str], zeroed: list[str], gap: float, kept: bool, zero: bool) -> Step:
    notes: tuple[str, ...] = ()
    if zero and not kept:
        notes = ("new blocks change the function although the weights above were set to zero: something else adds to "
                 "the stream, or the stream itself goes through them (a norm after the sum)",)  # fmt: skip
    if not zero:
        notes = ("new blocks are whole copies: the function changes, as in G_stack (Du et al. 2024)",)
    return Step("deepen", {"copies": copies, "zeroed": zeroed}, gap, kept, notes)


def _is_original(name: str, blocks: Blocks, originals: Mapping[str, Mapping[str, str]]) -> bool:
    for container, of_twin in originals.items():
        if name.startswith(f"{container}."):
            return name.removeprefix(f"{container}.").split(".")[0] in of_twin.values()
    return True
