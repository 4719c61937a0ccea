"""Predicts, from solved exponents, with which power of the width each layer's size and change should scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import linear_regression

from abcfx.checks.recorder import LOGITS, LOOKUP, PRODUCT, Use
from abcfx.checks.slopes import CHANGE, INIT, INPUT, UPDATE, Interval
from abcfx.dag.queries import attention_products
from abcfx.errors import InfeasibleError, InvalidInputError
from abcfx.exponents.attention import find_attention
from abcfx.exponents.dag_program import DagProgram, SolvedDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind
from abcfx.outcome import Outcome
from abcfx.plan.spec import SegmentPlan
from abcfx.rules import Bound, Layer
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.theory.parametrizations import Alignments, alignment_preset
from abcfx.transformed import Transformed

Intervals = Mapping[tuple[Use, str], Interval]
Predicted = Iterator[tuple[tuple[Use, str], Interval]]


def expected_slopes(result: Transformed) -> Intervals:
    """Predict in which interval the slopes of log2 rms of each layer over log2 width lie, if all is scaled right.

    The slopes follow from the exponents that `transform` solved: a quantity planned as m^-s (m: width / base width) has
    slope -s. For a layer with weight W, input x, and change dW of the weight since init:

    * "init", rms(W0) rms(x) sqrt(fan_in), which is the rms of W0 x while W0 and x are independent.
    * "update", rms(dW x). The exponents are solved again without learning rates that the user fixed, with missing
      attention scales put in, and with dW and x fully aligned, as they are for a batch of few tokens: a wrong rate or
      scale of the user's must not count as expected.
    * "change", rms(W x - W0 x0): from the change without any alignment up to the largest stable one.
    * "input", rms(x), the layer's multiplier included.

    Args:
        result: a transformed model.

    Returns:
        (parameter and how it is used, one of these names) -> interval. For a parameter used in several places, the
        smallest interval that holds the intervals of all of them.
    """
    predictor = _predictor(result)
    found: dict[tuple[Use, str], Interval] = {}
    for node, layer in predictor.fixed.dag.layers():
        for key, interval in predictor.of_layer(node, layer):
            found[key] = interval.joined(found.get(key, interval))
    for index, (node, after) in enumerate(attention_products(predictor.fixed.dag).items()):
        for key, interval in predictor.of_attention(index, node, after[-1] if after else node):
            found[key] = interval.joined(found.get(key, interval))
    return found


@dataclass(frozen=True)
class _Predictor:
    """Predicts, from solved exponents, with which power of the width the rms of a layer's input, update, ... grows.

    m is the ratio of width to base width.

    In the mappings below, a node is a place in the graph of the model's layers, and r is the exponent of its change in
    training, which is of order m^-r.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        fixed: exponents known before rates are solved: multipliers m^-a and init m^-b, without rates that the user
            fixed.
        full: for each layer, alignment exponents for updates that line up fully with inputs.
        solved: learning-rate exponents and r, solved with these full alignments.
        cautious: the same, solved with the alignments that the user asked for.
        fast: r of every node with full alignment: the fastest change to expect.
        slow: r of every node with no alignment: the slowest change to expect.
        segments: for weights whose input is a concatenation, their columns for each of the tensors, in order.
    """

    fixed: FixedExponents
    full: Mapping[str, Alignments]
    solved: SolvedDag
    cautious: SolvedDag
    fast: Mapping[str, float]
    slow: Mapping[str, float]
    segments: Mapping[str, tuple[SegmentPlan, ...]]

    def of_layer(self, node: str, layer: Layer) -> Predicted:
        """Yield the predicted interval of the exponent of each rms ("init", "input", "change", "update") of one layer.

        Args:
            node: name of the layer in the graph of layers.
            layer: the layer: its parameter, and whether that is used as a matrix or as a lookup table.

        Yields:
            ((parameter and use, "init" or another), interval of exponents of width). Those that do not apply are left
            out.
        """
        fixed = self.fixed
        parts = [each.part for each in self.segments.get(layer.parameter, ())]
        index = 0 if layer.part is None else parts.index(layer.part)
        use = Use(layer.parameter, PRODUCT if layer.fan_in else LOOKUP, index)
        after = 0.0 if layer.fan_in else _numbers_after(fixed, node)
        size = replace(layer, vectors=()).size(node, fixed) + after
        if math.isfinite(size) and not layer.normalised:
            yield (use, INIT), _interval(-size, -size)
            entering = fixed.a(node) + fixed.size(layer.inputs[0])
            yield (use, INPUT), _interval(-entering, -entering)
        if fixed.changes(node):
            yield (use, CHANGE), self._change(node, after)
        if fixed.learns(layer.parameter):
            rate = self._update(self.solved, node, layer) + after
            cautious = self._update(self.cautious, node, layer) + after
            starts_smaller = max(0.0, fixed.size(layer.inputs[0]) - fixed.trained_size(layer.inputs[0]))
            yield (use, UPDATE), _interval(min(-rate, -cautious) - starts_smaller, -rate)

    def of_attention(self, index: int, node: str, logits: str) -> Predicted:
        """Yield the intervals predicted for the exponents with which the rms of an attention's logits grows with width.

        Args:
            index: number of the attention, in the order in which they run.
            node: node of the product of queries and keys, in the graph of layers.
            logits: last node before the softmax, after scaling and masking.

        Yields:
            ((key of the attention, "init" or "change"), interval): for the logits at init, and their change since then.
        """
        use, growth = Use("", LOGITS, index), _head_growth(self.fixed, node)
        if growth:  # else biases that are added to them may depend on the number of heads, as in ALiBi
            size = self.fixed.size(logits)
            yield (use, INIT), _interval(-size, -size)
        if self.fixed.changes(logits):
            yield (use, CHANGE), self._change(logits, 0.0)
            yield (use, CHANGE), _interval(-self.fast[logits] - growth / 2, -self.fast[logits])

    def _change(self, node: str, after: float) -> Interval:
        """Return which slopes the change of a node since init may have: from no alignment up to the largest stable one.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Args:
            node: name of the node in the graph of layers.
            after: exponent x of a further factor m^-x, m the width ratio, by which the model multiplies the node's
                output.
        """
        high = max(-self.fast[node], -min(0.0, self.fixed.size(node)))
        return _interval(min(-self.slow[node], high) - after, high - after)

    def _update(self, solved: SolvedDag, node: str, layer: Layer) -> float:
        """Return r for a layer's own update dW: rms(dW x) is expected to be of order m^-r, with m the width ratio.

        Args:
            solved: solved learning-rate exponents.
            node: name of the layer in the graph of layers.
            layer: the layer.
        """
        bound = next(bound for bound in layer.change(node, self.fixed) if bound.label.kind is RowKind.ALPHA)
        return _value(bound, solved, {}, self.full[node])


def _predictor(result: Transformed) -> _Predictor:
    """Solve a transformed model's exponents again, and return the predictor of slopes over width made from them.

    They are solved twice, for updates that line up fully with inputs, and for the alignments that the user asked for.

    Args:
        result: the transformed model.
    """
    outcome = result.outcome
    fixed = _without_user_rates(outcome.fixed)
    full = fixed.aligned(alignment_preset("full"))
    solved = _solve(fixed, full, outcome.solution)
    cautious = _solve(fixed, outcome.alignments, outcome.solution)
    none = dict.fromkeys(full, Alignments(0.5, 0.5, 0.5))
    segments = {name: plan.segments for name, plan in outcome.plan.items() if plan.segments}
    slow = _changes(fixed, solved, none)
    return _Predictor(fixed, full, solved, cautious, fast=solved.r, slow=slow, segments=segments)


def _interval(low: float, high: float) -> Interval:
    """Make an interval of slopes (exponents of width), with 0.0 for -0.0 so that no minus is printed before a zero."""
    return Interval(low + 0.0, high + 0.0)  # no minus before zero


def _numbers_after(fixed: FixedExponents, node: str) -> float:
    """Return x such that the model multiplies the rows looked up at a node by numbers that scale like m^-x.

    m is the ratio of width to base width. Only numbers that multiply the rows before any other op count, as in the
    sqrt(d_model) of some embeddings.

    Args:
        fixed: exponents of width that are known before learning rates are solved, and the graph of the model's layers.
        node: name of the lookup in that graph.
    """
    total = 0.0
    while True:
        after = [n for n in fixed.dag.successors(node) if isinstance(fixed.dag.kind(n), NumberFactor)]
        if len(after) != 1 or not isinstance(factor := fixed.dag.kind(after[0]), NumberFactor):
            return total
        node = after[0]
        total += factor.shift(fixed)


def _head_growth(fixed: FixedExponents, node: str) -> float:
    """Return x such that head_dim grows like m^x (m: width ratio); 0 if the node is no product of queries and keys.

    Queries and keys need not be aligned along head_dim after only a few steps, so logits may change by less than
    planned.

    Args:
        fixed: exponents of width that are known before learning rates are solved, and the graph of the model's layers.
        node: name of the product in that graph.
    """
    kind = fixed.dag.kind(node)
    return fixed.growth(*kind.contracted) if isinstance(kind, Product) else 0.0


def shortfall(rows: int, fan_in: Sequence[int], log_widths: Sequence[float]) -> float:
    """Return how far the slope of rms(dW x) over width may fall short on a batch of few rows; at most 1/2.

    dW is a sum of as many outer products as the input x had rows. Each row lines up with its own product, and adds to
    the others as noise: for n = fan_in, rms(dW x) is ~ n sqrt(1 + rows / n), not ~ n.

    Args:
        rows: number of rows of x.
        fan_in: fan_in of the layer at each width.
        log_widths: log2 of each width.
    """
    bend = [math.log2(1 + rows / n) / 2 for n in fan_in]
    return min(0.5, max(0.0, -linear_regression(log_widths, bend).slope))


def logits_names(outcome: Outcome) -> list[str]:
    """Return the module path of every attention (its node's name if it has none), in the order in which they run."""
    dag = outcome.fixed.dag
    return [dag.node(node).path or node for node in attention_products(dag)]


def _without_user_rates(fixed: FixedExponents) -> FixedExponents:
    """Return a model's exponents without learning rates that the user fixed, and with missing attention scales.

    What is solved from the result is what the model ought to do, even if the user gave wrong rates or scales.
    """
    parameters = {name: replace(each, c=None) for name, each in fixed.parameters.items()}
    free = FixedExponents(fixed.dag, fixed.widths, parameters, fixed.families)
    with suppress(InvalidInputError):  # a scale that cannot be read, and stays
        free = free.with_attention({each.node: each.missing for each in find_attention(free) if each.missing})
    return free


def _solve(fixed: FixedExponents, alignment: Mapping[str, Alignments], otherwise: SolvedDag) -> SolvedDag:
    """Solve the linear program for learning-rate exponents; return `otherwise` if there is no solution.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        fixed: exponents known before: multipliers and inits.
        alignment: alignment exponents (alpha, omega, u) of each layer.
        otherwise: an earlier solution.
    """
    try:
        return DagProgram(fixed, alignment).solve()
    except InfeasibleError:  # a and b given by the user, which only the rates given with them fit
        return otherwise


def _value(bound: Bound, solved: SolvedDag, r: Mapping[str, float], alignment: Alignments | None) -> float:
    """Evaluate the right side of one inequality, `sum(inputs) + constant - weight * alignment`.

    The inequalities are those of the linear program that is solved for learning-rate exponents. Alignment is 1/2 if
    updates and inputs are independent, and 1 if they line up fully.

    Args:
        bound: the inequality.
        solved: solution that gives the learning-rate exponents c and other variables.
        r: node -> exponent r of its change m^-r in training (m: width ratio), for inputs of the kind "r".
        alignment: alignment exponents of the layer; None ignores the alignment term.
    """
    value = bound.constant
    if bound.alignment and alignment is not None:
        value -= bound.weight * float(getattr(alignment, bound.alignment))
    for kind, name in bound.inputs:
        if kind == "r":
            value += r[name]
        elif kind == "c":
            value += solved.c[name]
        else:
            value += float(solved.solution.levels[kind, name])
    return value


def _changes(fixed: FixedExponents, solved: SolvedDag, alignment: Mapping[str, Alignments]) -> dict[str, float]:
    """Compute the exponent r of each node that changes in training, by order m^-r (m: width ratio).

    Nodes are the layers and ops in the graph of the model's layers. From inputs to outputs, each r is the least of the
    node's bounds, evaluated without a solver.

    Args:
        fixed: multiplier and init exponents, and the graph.
        solved: solved learning-rate exponents.
        alignment: alignment exponents of each layer: 1/2 for updates that are independent of inputs, 1 for aligned
            ones.
    """
    r: dict[str, float] = {}
    for node in fixed.dag.order:
        if fixed.changes(node):
            bounds = fixed.dag.kind(node).changes(node, fixed)
            r[node] = min(_value(bound, solved, r, alignment.get(node)) for bound in bounds)
    return r
