"""Factors the dims of every tensor of a paired run: walks the calls of the small and the large model side by side."""

from __future__ import annotations

import torch

from abcfx.capture.aten import Call, Ref, Trace
from abcfx.errors import PairingError
from abcfx.pairing.factors import math_ops, view_ops
from abcfx.pairing.factors.atoms import UnfitError, fresh, index_map, without_origin
from abcfx.pairing.factors.step import (
    COPIES_COMPETE,
    COPIES_COUNT,
    RULES,
    Dims,
    Factors,
    Problem,
    ProblemKind,
    Rule,
    Step,
)

RULE_FILES = (math_ops, view_ops)
_LOOKUPS = frozenset({"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"})
"""Files that register the rules when they are imported."""


def factor(small: Trace, large: Trace) -> Factors:
    """Write every dim in the runs of a small and a large model as a product of factors that grow or stay.

    The two runs are walked side by side; dims of several tensors share their factors.

    Args:
        small: the aten calls of a run of the small model.
        large: those of the large model, with as many blocks as the small one.

    Raises:
        PairingError: the models do not make the same calls; names the first that differs.
    """
    _check_same_calls(small, large)
    factors = Factors(small, large, [None] * len(large.shapes))
    for name, ref in (large.parameters | large.buffers).items():
        factors.dims[ref.index] = tuple(fresh(size, (name, i)) for i, size in enumerate(factors.shape(ref)))
        factors.of_weights.add(ref.index)
    for index in range(len(large.calls)):
        _follow(Step(factors, index))
    for index, dim in factors.averaged:  # only now is every dim refined as far as it will be
        copies = index_map(dim).copies()
        if len(copies) and bool((copies != copies[0]).any()):
            call = large.calls[index]
            reason = "it averages over a dim whose entries have unequal numbers of copies"
            factors.problems.append(Problem(index, call.path, call.name, ProblemKind.UNEVEN, reason, dim))
    return factors


def _follow(step: Step) -> None:
    """Set the dims of the results of one aten call, as products of factors, in `step.factors`, by the op's rule."""
    results = step.call.outs
    each = _apply(_rule_of(step), step)
    if step.call.name in COPIES_COMPETE | COPIES_COUNT and step.tensors():
        dims, at = step.dims(step.tensors()[0]), step.optional("dim")
        if isinstance(at, int) and dims:
            step.check_copies(dims[at])
    if _is_of_weights(step):
        step.factors.of_weights.update(ref.index for ref in results)
    else:
        each = [tuple(map(without_origin, dims)) for dims in each]
    for ref, dims in zip(results, each, strict=False):
        if step.factors.dims[ref.index] is None:
            step.factors.dims[ref.index] = tuple(dims)


def _rule_of(step: Step) -> Rule | None:
    """Return the function that finds the dims of an aten call's results; None if no rule is known for its op.

    Ops that torch tags as pointwise need no rule of their own.
    """
    name, results = step.call.name, step.call.outs
    if results and any(0 in pair for pair in step.shape(results[0])):
        return _without_entries
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if found is None and torch.Tag.pointwise in step.call.op.tags:
        return math_ops.pointwise
    return found


def _without_entries(step: Step) -> list[Dims]:
    """Return new dims, of which nothing but the size is known, for the results of an op on empty tensors."""
    return [step.unknown(ref) for ref in step.call.outs]


def _apply(rule: Rule | None, step: Step) -> list[Dims]:
    """Return the dims of each result of an aten call, as products of factors, by the rule of its op.

    A factor has a size in the small and in the large model. Where the rule does not fit, the result gets dims of which
    nothing but the size is known; if such a dim grows, a `Problem` is added to `step.factors.problems`.
    """
    results, kind = step.call.outs, ProblemKind.OTHER
    try:
        if rule is None:
            kind = ProblemKind.NO_RULE
            raise UnfitError("no rule says how the dims of this op's result follow from its inputs")
        found = rule(step)
    except UnfitError as error:
        if any(small != large for ref in results for small, large in step.shape(ref)):
            step.report(str(error), kind=kind, fatal=True)
        return [step.unknown(ref) for ref in results]
    return found if isinstance(found, list) else [found]


def _is_of_weights(step: Step) -> bool:
    """Whether the results of an aten call are computed from parameters and buffers alone.

    Rows that data choose from a table are not.
    """
    floats = [ref for ref in step.tensors() if step.is_floating(ref)]
    looks_up = step.call.name in _LOOKUPS
    return bool(floats) and not looks_up and all(ref.index in step.factors.of_weights for ref in floats)


def _check_same_calls(small: Trace, large: Trace) -> None:
    """Raise an error unless two runs make the same calls on tensors of the same ranks.

    Raises:
        PairingError: names the first call that differs.
    """
    for one, other in zip(small.calls, large.calls, strict=False):
        ours, theirs = ([ref.index for ref in _refs(call)] for call in (one, other))
        if _kind(one) != _kind(other) or ours != theirs:
            raise PairingError(_difference(one, other))
    if len(small.calls) != len(large.calls):
        longer = max(small.calls, large.calls, key=len)
        raise PairingError(_difference(longer[min(len(small.calls), len(large.calls))], None))
    ranks = zip(small.shapes, large.shapes, strict=False)
    if len(small.shapes) != len(large.shapes) or any(len(one) != len(other) for one, other in ranks):
        raise PairingError(
            "The small and the large model make the same calls on tensors of different ranks.\n"
            "  To fix: build both by the same code, with the same options, and change widths only."
        )


def _kind(call: Call) -> str:
    """Return the name by which aten calls of two models are compared: one for all views, whether they copy or not."""
    return "view" if call.name in ("view", "_unsafe_view", "_reshape_alias") else str(call.op)


def _refs(call: Call) -> list[Ref]:
    """Return the tensors, as numbers, among the arguments and results of an aten call."""
    return [*call.inputs, *call.outs]


def _difference(one: Call, other: Call | None) -> str:
    """Return the message that the two models do not run the same op; `other` is None where one stops earlier."""
    got = "nothing more" if other is None else f"{other.name} in {other.path or 'its own forward'}"
    return (
        f"The small and the large model do not run the same operations; they first differ in "
        f"{one.path or 'the forward of the model'}:\n  one runs {one.name}, the other {got}.\n"
        f"  To fix: build both by the same code, with the same options, and change widths only."
    )
