"""Which slopes the solved exponents allow every layer: of its init, its update, its change and its attention logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from abcfx.checks.recorder import LOGITS, LOOKUP, PRODUCT, Use
from abcfx.dag.queries import attention_products
from abcfx.errors import InfeasibleError, InvalidInputError
from abcfx.exponents.attention import find_attention
from abcfx.exponents.dag_program import DagProgram, SolvedDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind
from abcfx.outcome import Outcome
from abcfx.rules import Bound, Layer
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.theory.parametrizations import Alignments, alignment_preset
from abcfx.transformed import Transformed

INIT, UPDATE, CHANGE = "init", "update", "change"
INPUT, OUTPUT = "input", "output"  # for information


@dataclass(frozen=True)
class Interval:
    """Slopes, exponents of width, that a statistic may have before any tolerance."""

    low: float
    high: float

    def joined(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))


Intervals = Mapping[tuple[Use, str], Interval]


def expected_slopes(result: Transformed) -> dict[tuple[Use, str], Interval]:
    """Intervals by (use of a parameter, statistic).

    * `init`, rms(W0) rms(x) sqrt(fan_in), which W0 x has as long as they are independent: its size exponent, -s.
    * `update`, rms(dW x): -(what bounds r by the layer's own update), with full alignment, since a probe of few tokens
      lines up with the updates that it makes. A rate that the user fixed is not taken for the right one, nor is
      attention that was told to keep its scale: the LP is solved without.
    * `change`, rms(W x - W0 x0): from what no alignment predicts up to what stays stable.
    * `input`, rms(x) with the layer's multiplier: the size exponent of both.
    """
    analysis = result.outcome
    setting = _free(analysis.fixed)
    full = _alignments(setting, "full")
    solved = _solve(setting, full, result.solution)
    own = _solve(setting, analysis.alignments, result.solution)
    none = dict.fromkeys(full, Alignments(0.5, 0.5, 0.5))
    fast, slow = solved.r, _changes(setting, solved, none)
    found: dict[tuple[Use, str], Interval] = {}

    def add(use: Use, statistic: str, low: float, high: float) -> None:
        new = Interval(low + 0.0, high + 0.0)
        known = found.get((use, statistic))
        found[use, statistic] = new if known is None else known.joined(new)

    def add_change(use: Use, node: str, numbers: float = 0.0) -> None:
        high = max(-fast[node], -min(0.0, setting.size(node)))
        add(use, CHANGE, min(-slow[node], high) - numbers, high - numbers)

    for node, layer in setting.dag.layers():
        use = Use(layer.parameter, PRODUCT if layer.fan_in else LOOKUP)
        size = replace(layer, vectors=()).size(node, setting)
        numbers = 0.0 if layer.fan_in else _numbers_after(setting, node)
        size += numbers
        if math.isfinite(size) and not layer.normalised:
            add(use, INIT, -size, -size)
            entering = setting.a(node) + setting.size(layer.inputs[0])
            add(use, INPUT, -entering, -entering)
        if setting.changes(node):
            add_change(use, node, numbers)
        if setting.learns(layer.parameter):
            rate = _update(setting, solved, node, layer, full) + numbers
            cautious = _update(setting, own, node, layer, full) + numbers
            add(use, UPDATE, min(-rate, -cautious), -rate)
    for index, (node, after) in enumerate(attention_products(setting.dag).items()):
        use, logits = Use("", LOGITS, index), after[-1] if after else node
        grown = _head_growth(setting, node)
        if grown:  # else biases that are added to them may depend on the number of heads, as in ALiBi
            add(use, INIT, -setting.size(logits), -setting.size(logits))
        if setting.changes(logits):
            add_change(use, logits)
            add(use, CHANGE, -fast[logits] - grown / 2, -fast[logits])
    return found


def _numbers_after(setting: FixedExponents, node: str) -> float:
    """Exponent of the numbers that the model multiplies a looked up row with, before anything else is done to it."""
    total = 0.0
    while True:
        after = [n for n in setting.dag.successors(node) if isinstance(setting.dag.kind(n), NumberFactor)]
        if len(after) != 1 or not isinstance(scale := setting.dag.kind(after[0]), NumberFactor):
            return total
        node = after[0]
        total += scale.shift(setting)


def _head_growth(setting: FixedExponents, node: str) -> float:
    """Growth of head_dim, over which queries and keys need not be aligned yet after a few steps."""
    kind = setting.dag.kind(node)
    return setting.growth(*kind.contracted) if isinstance(kind, Product) else 0.0


def shortfall(rows: int, fan_in: Sequence[int], log_widths: Sequence[float]) -> float:
    """How much lower than its limit the slope of rms(dW x) is when dW is a sum of as many outer products as x has rows.

    A row of x lines up with its own product, one of `rows` alike, and adds to the others as noise: rms(dW x) is
    ~ n sqrt(1 + rows / n), not ~ n, for n = fan_in. Least squares over the widths, at most 1/2.
    """
    bend = [math.log2(1 + rows / n) / 2 for n in fan_in]
    return min(0.5, max(0.0, -least_squares(log_widths, bend)))


def least_squares(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of y over x."""
    mean = sum(x) / len(x)
    centred = [value - mean for value in x]
    return sum(a * b for a, b in zip(centred, y, strict=True)) / sum(a * a for a in centred)


def logits_names(analysis: Outcome) -> list[str]:
    """Module path of every attention, in the order in which they run."""
    dag = analysis.fixed.dag
    return [dag.node(node).path or node for node in attention_products(dag)]


def _free(setting: FixedExponents) -> FixedExponents:
    """The setting without rates that the user fixed, and with what is missing on attention logits."""
    parameters = {name: replace(each, c=None) for name, each in setting.parameters.items()}
    free = FixedExponents(setting.dag, setting.widths, parameters, setting.families)
    with suppress(InvalidInputError):  # a scale that cannot be read, and stays
        free = free.with_attention({each.node: each.missing for each in find_attention(free) if each.missing})
    return free


def _solve(setting: FixedExponents, alignment: Mapping[str, Alignments], otherwise: SolvedDag) -> SolvedDag:
    try:
        return DagProgram(setting, alignment).solve()
    except InfeasibleError:  # a given (a, b) that only the given rates fit
        return otherwise


def _alignments(setting: FixedExponents, preset: str) -> dict[str, Alignments]:
    inner, readout = alignment_preset(preset)
    return {
        node: readout if setting.parameters[layer.parameter].role == "readout" else inner
        for node, layer in setting.dag.layers()
    }


def _value(bound: Bound, node: str, solved: SolvedDag, r: Mapping[str, float], alignment: Alignments | None) -> float:
    """The exponent that a bound stands for."""
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


def _update(
    setting: FixedExponents, solved: SolvedDag, node: str, layer: Layer, alignment: Mapping[str, Alignments]
) -> float:
    bound = next(bound for bound in layer.change(node, setting) if bound.label.kind is RowKind.ALPHA)
    return _value(bound, node, solved, {}, alignment[node])


def _changes(setting: FixedExponents, solved: SolvedDag, alignment: Mapping[str, Alignments]) -> dict[str, float]:
    """r of every node by exact recursion, as the minimum of its bounds."""
    r: dict[str, float] = {}
    for node in setting.dag.order:
        if setting.changes(node):
            bounds = setting.dag.kind(node).changes(node, setting)
            r[node] = min(_value(bound, node, solved, r, alignment.get(node)) for bound in bounds)
    return r
