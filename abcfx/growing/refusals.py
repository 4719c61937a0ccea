"""Finds out, from structure and constants, why a large model cannot be filled so that it keeps the function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.growing.plan import GrowthPlan, padded_atoms
from abcfx.pairing.factors import Factors, Problem, index_map
from abcfx.pairing.factors.atoms import described, expanded, grows, plain_atoms, root
from abcfx.pairing.factors.index_maps import tiled
from abcfx.pairing.factors.step import ProblemKind
from abcfx.rules.extents import ParameterDim
from abcfx.support.trees import leaves_of

READ_BY_SOLVE = frozenset({"mul", "div", "mul_", "div_", "_scaled_dot_product_flash_attention_for_cpu", "true_divide"})
"""Ops whose numbers the log-scale solve reads; in any other op, a number that differs changes the function."""

_FIXES = {
    ProblemKind.UNEVEN: "grow that dim by a whole number of times",
    ProblemKind.NORMED_WEIGHT: (
        "torch.nn.utils.parametrize.remove_parametrizations on both models; grow; parametrize again"
    ),
    ProblemKind.NO_RULE: "report the op in an issue; abcfx does not guess",
    ProblemKind.COMPETING: "keep that dim, or let the number of experts and top_k grow by the same factor",
    ProblemKind.OTHER: "keep that dim as it is, or grow another factor of the width",
}


@dataclass(frozen=True)
class Refusal:
    """A reason why a large model cannot be filled so that it computes what the small one does.

    Attributes:
        path: module path, or name of the tensor.
        op: name of the op, or what the tensor is.
        reason: what is different, in words.
        fix: what to change.
    """

    path: str
    op: str
    reason: str
    fix: str

    def __str__(self) -> str:
        """Return the reason against growing as text: place, what is different, and what to change.

        Growing is filling a larger model with copies of a small one's entries.
        """
        return f"{self.path or 'the model itself'}, {self.op}: {self.reason}.\n    To fix: {self.fix}"


def refusals(plan: GrowthPlan, small: nn.Module, large: nn.Module) -> list[Refusal]:
    """List every known reason why a large model cannot be filled to compute what the small one does.

    Args:
        plan: the plan by which it would be filled.
        small: the small model.
        large: the large model, with as many blocks as the small one.
    """
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
    """Yield a reason against growing for each weight that forward divides by its own norm over a dim that grows.

    No factor on such a weight has any effect. Growing is filling a larger model with copies of a small one's entries.
    """
    for _, layer in plan.dag.layers():
        dims = [plan.factors.parameter(layer.parameter)[d.index] for d in layer.fan_in if isinstance(d, ParameterDim)]
        if layer.normalised and any(map(grows, dims)):
            reason = "forward divides this weight by a norm of itself, so that no factor can make up for a longer sum"
            yield Refusal(layer.parameter, "weight norm", reason, _FIXES[ProblemKind.NORMED_WEIGHT])


def _shrinking(factors: Factors) -> Iterator[Refusal]:
    """Yield a reason against growing for each parameter with a dim, or a factor of a dim, that shrinks.

    Growing is filling a larger model with copies of a small one's entries.
    """
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
    """Yield a reason against growing for each constant buffer whose values are not the small model's repeated.

    Growing is filling a larger model with copies of a small one's entries.
    """
    ours, theirs = dict(large.named_buffers()), dict(small.named_buffers())
    saved = large.state_dict(keep_vars=True)
    shared = {id(atom) for ref in factors.large.parameters.values() for d in factors.of(ref) for atom in plain_atoms(d)}
    for name, ref in factors.large.buffers.items():
        dims = factors.of(ref)
        if name in factors.statistics or (name in saved and not any(map(grows, dims))):
            continue
        atoms = [atom for dim in dims for atom in plain_atoms(dim) if atom.grows]
        if any(id(atom) not in shared for atom in atoms):  # a length, not a width
            continue
        is_number = ours[name].numel() == 1
        if is_number and float(ours[name]) * float(theirs[name]) > 0:  # the log-scale solve has read its ratio
            continue
        expected = tiled(theirs[name], [index_map(dim) for dim in dims])
        if not same_constant(ours[name], expected):
            grown = f" ({' , '.join(map(described, dims))})" if atoms else ""
            yield Refusal(
                name,
                "constant",
                f"in the large model it is not {'a tiling of' if atoms else 'equal to'} the small one's{grown}",
                "grow the number of heads instead of head_dim" if atoms else "give both models the same constants",
            )


def same_constant(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two constant tensors are equal up to rounding."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    limit = 1e-6 * (1 + other.abs().nan_to_num(posinf=0.0, neginf=0.0).max()) if other.numel() else 0.0
    close = (one - other).abs() <= limit
    return bool((close | (one == other)).all())


def _numbers(factors: Factors) -> Iterator[Refusal]:
    """Yield a reason against growing for each call with a number, such as eps, that differs between the models.

    Numbers that the search for the factors of weights has read are left out. Growing is filling a larger model with
    copies of a small one's entries.
    """
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        if other.name in READ_BY_SOLVE:
            continue
        numbers = (leaves_of(float, (call.args, dict(call.kwargs))) for call in (other, one))
        for ours, theirs in zip(*numbers, strict=True):
            if ours != theirs:
                yield Refusal(
                    other.path,
                    other.name,
                    f"a number in the graph is {ours:g} in the large model and {theirs:g} in the small one",
                    "give both models the same options (eps, rope theta, dropout, clamps)",
                )


def _structure(factors: Factors) -> Iterator[Refusal]:
    """Yield a reason against growing for each op whose result changes when the entries of its inputs are repeated.

    Growing is filling a larger model with copies of a small one's entries.
    """
    padded = {id(atom) for atom in padded_atoms(factors)}
    chosen, alive = _chosen(factors), _alive(factors)
    for problem in factors.problems:
        if problem.call not in alive:  # no output depends on it: only its shape was looked at
            continue
        growing = [atom for atom in plain_atoms(problem.dim) if atom.grows]
        if not growing or not all(id(atom) in padded or atom.size in chosen for atom in growing):
            yield _refusal(problem)
    for dim in factors.indexed:
        if not all(id(atom) in padded for atom in plain_atoms(dim) if atom.grows):
            reason = "rows of a table that are looked up grow and are summed over elsewhere"
            yield Refusal("a table", "embedding", reason, "keep their number")


def _refusal(problem: Problem) -> Refusal:
    """Return the reason against growing for a call whose result changes if entries are repeated.

    Growing is filling a larger model with copies of a small one's entries.
    """
    return Refusal(problem.path, problem.op, problem.reason, _FIXES[problem.kind])


def _alive(factors: Factors) -> set[int]:
    """Return the indices of the calls, in runs of small and large model, that the outputs depend on."""
    needed, found = set(factors.large.outputs), set[int]()
    for index in range(len(factors.large.calls) - 1, -1, -1):
        call = factors.large.calls[index]
        if needed.intersection(call.outs):
            found.add(index)
            needed.update(call.inputs)
    return found


def _chosen(factors: Factors) -> set[tuple[int, int]]:
    """Return (small, large) numbers of experts of each top-k whose k grows in the same ratio as they do.

    It then chooses all copies of an expert together.
    """
    found = set()
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        if other.name == "topk":
            dim = factors.of(other.inputs[0])[other.argument("dim", -1)]
            ks = one.argument("k"), other.argument("k")
            whole = [root(use.atom) for use in expanded(dim)]
            if len(whole) == 1 and whole[0].large * ks[0] == whole[0].small * ks[1]:
                found.add(whole[0].size)
    return found
