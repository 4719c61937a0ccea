"""Why a large model cannot be filled so that it keeps the function, as far as structure and constants tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from abcfx.capture.aten import Call
from abcfx.growing.plan import GrowthPlan, padded_atoms
from abcfx.pairing.factors import Factors, factors_of
from abcfx.pairing.factors.atoms import described, legs, plain_atoms, root
from abcfx.pairing.factors.index_maps import tiled
from abcfx.rules.extents import ParameterDim
from abcfx.support import trees

ACCOUNTED = frozenset({"mul", "div", "mul_", "div_", "_scaled_dot_product_flash_attention_for_cpu", "true_divide"})
"""Ops whose numbers the log-scale solve reads; another number that differs changes the function."""


@dataclass(frozen=True)
class Refusal:
    """`path`: module path, or name of the tensor. `fix`: what to write."""

    path: str
    op: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'}, {self.op}: {self.reason}.\n    To fix: {self.fix}"


def refusals(plan: GrowthPlan, small: nn.Module, large: nn.Module) -> list[Refusal]:
    """Everything that stands against keeping the function; empty where nothing is known to."""
    factors = plan.factors
    found = [
        *_shrinking(factors),
        *_constants(factors, small, large),
        *_numbers(factors),
        *_structure(factors),
        *_normalised(plan),
    ]
    return list({(each.path, each.reason): each for each in found}.values())


def _normalised(plan: GrowthPlan) -> Iterator[Refusal]:
    """Weights that forward divides by their own size: no factor on them counts, and their sums grow."""
    for _, layer in plan.dag.layers():
        dims = [plan.factors.parameter(layer.parameter)[d.index] for d in layer.fan_in if isinstance(d, ParameterDim)]
        if layer.normalised and any(map(_grows, dims)):
            reason = "forward divides this weight by a norm of itself, so that no factor can make up for a longer sum"
            yield Refusal(layer.parameter, "weight norm", reason, _fix("norm of itself"))


def _shrinking(factors: Factors) -> Iterator[Refusal]:
    for name, ref in factors.large.parameters.items():
        for place, dim in enumerate(factors.of(ref)):
            for atom in plain_atoms(dim):
                if atom.large < atom.small:
                    yield Refusal(
                        name,
                        f"dim {place}",
                        f"of its factors {described(dim)} one shrinks, {atom.small} -> {atom.large}",
                        f"keep that factor at {atom.small} or let it grow",
                    )


def _constants(factors: Factors, small: nn.Module, large: nn.Module) -> Iterator[Refusal]:
    ours, theirs = dict(large.named_buffers()), dict(small.named_buffers())
    saved = large.state_dict(keep_vars=True)
    shared = {id(atom) for ref in factors.large.parameters.values() for d in factors.of(ref) for atom in plain_atoms(d)}
    for name, ref in factors.large.buffers.items():
        dims = factors.of(ref)
        if name in factors.statistics or (name in saved and not any(map(_grows, dims))):
            continue
        atoms = [atom for dim in dims for atom in plain_atoms(dim) if atom.small != atom.large]
        if any(id(atom) not in shared for atom in atoms):  # a length, not a width
            continue
        if ours[name].numel() == 1 and float(ours[name]) * float(theirs[name]) > 0:  # a number: the solve has read it
            continue
        expected = tiled(theirs[name], [factors_of(dim) for dim in dims])
        if not same(ours[name], expected):
            grown = f" ({' , '.join(map(described, dims))})" if atoms else ""
            yield Refusal(
                name,
                "constant",
                f"in the large model it is not {'a tiling of' if atoms else 'equal to'} the small one's{grown}",
                "grow the number of heads instead of head_dim" if atoms else "give both models the same constants",
            )


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to how constants are computed."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    limit = 1e-6 * (1 + other.abs().nan_to_num(posinf=0.0, neginf=0.0).max()) if other.numel() else 0.0
    close = (one - other).abs() <= limit
    return bool((close | (one == other)).all())


def _grows(dim: Any) -> bool:
    return any(atom.small != atom.large for atom in plain_atoms(dim))


def _numbers(factors: Factors) -> Iterator[Refusal]:
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        if other.name in ACCOUNTED:
            continue
        for ours, theirs in zip(_floats(other), _floats(one), strict=True):
            if ours != theirs:
                yield Refusal(
                    other.path,
                    other.name,
                    f"a number in the graph is {ours:g} in the large model and {theirs:g} in the small one",
                    "give both models the same options (eps, rope theta, dropout, clamps)",
                )


def _floats(call: Call) -> list[float]:
    return trees.leaves_of(float, (call.args, dict(call.kwargs)))


def _structure(factors: Factors) -> Iterator[Refusal]:
    fine = {id(atom) for atom in padded_atoms(factors)}
    chosen, alive = _chosen(factors), _alive(factors)
    for problem in factors.problems:
        if problem.call not in alive:  # looked at for its shape alone
            continue
        growing = [atom for atom in plain_atoms(problem.dim) if atom.small != atom.large]
        if not growing or not all(id(atom) in fine or atom.size in chosen for atom in growing):
            yield Refusal(problem.path, problem.op, problem.reason, _fix(problem.reason))
    for dim in factors.indexed:
        if not all(id(atom) in fine for atom in plain_atoms(dim) if atom.small != atom.large):
            reason = "rows of a table that are looked up grow and are summed over elsewhere"
            yield Refusal("a table", "embedding", reason, "keep their number")


def _alive(factors: Factors) -> set[int]:
    """Calls that the outputs depend on."""
    needed, found = set(factors.large.outputs), set[int]()
    for index in range(len(factors.large.calls) - 1, -1, -1):
        call = factors.large.calls[index]
        if needed.intersection(call.outs):
            found.add(index)
            needed.update(call.inputs)
    return found


def _chosen(factors: Factors) -> set[tuple[int, int]]:
    """Numbers of experts out of which a top-k is taken whose k grows alike: then all copies are chosen together."""
    found = set()
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        if other.name == "topk":
            dim = factors.of(other.inputs[0])[other.argument("dim", -1)]
            ks = one.argument("k"), other.argument("k")
            whole = [root(leg.atom) for leg in legs(dim)]
            if len(whole) == 1 and whole[0].large * ks[0] == whole[0].small * ks[1]:
                found.add(whole[0].size)
    return found


def _fix(reason: str) -> str:
    if "unequal" in reason:
        return "grow that dim by a whole number of times"
    if "norm of itself" in reason:
        return "torch.nn.utils.parametrize.remove_parametrizations on both models; grow; parametrize again"
    if "no rule" in reason:
        return "say so in an issue, with the op; nothing is guessed"
    if "softmax" in reason or "topk" in reason or "indexed" in reason:
        return "keep that dim, or let the number of experts and top_k grow alike"
    return "keep that dim as it is, or grow another factor of the width"
