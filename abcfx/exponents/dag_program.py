"""Writes the rows of a layer DAG, has them solved, and works out what follows: vectors, gradients, what binds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind, RowLabel, RowName
from abcfx.lp.program import DECIMALS, LpSolution, Solver
from abcfx.lp.rows import Rate, Row
from abcfx.rules import Bound, Layer, Vector
from abcfx.rules.kinds import Merge, NumberFactor, Product
from abcfx.theory.parametrizations import Alignments

TOLERANCE = 1e-6


def warnings(setting: FixedExponents, solved: SolvedDag) -> tuple[str, ...]:
    """What a user should know of a solution that is right for the model as it is, but not what he will want."""
    notes = []
    for node in setting.dag.order:
        kind = setting.dag.kind(node)
        slowed = max((solved.r.get(n, 0.0) - max(solved.s[n], 0.0) for n in kind.sources), default=0.0)
        if isinstance(kind, Product) and setting.growth(*kind.contracted) > 0 and slowed > TOLERANCE:
            notes.append(
                f"{node}: a product of activations sums over a dim that grows and is not divided by it, as attention "
                f"with 1/sqrt(head_dim) where head_dim grows. Its inputs may change by m^-{slowed:g} only: every layer "
                f"before it learns slowly. Divide by the dim (c / head_dim), or let the number of heads grow instead."
            )
        if node in setting.dag.outputs and setting.size(node) < -TOLERANCE:
            notes.append(f"{node}: this output of the model grows at init like m^{-setting.size(node):g}")
    unused = [name for name, p in setting.parameters.items() if p.role == "plain" and not p.a]
    if unused:
        some = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        notes.append(f"not used by the traced graph, so left at the plain lr: {some}")
    return tuple(notes)


class BindingKind(Enum):
    """A reason why a learning-rate exponent is not lower."""

    ROWS = "rows"  # of the linear program
    RULE = "rule"  # no column in the linear program: the least that what the parameter acts on allows
    GIVEN = "given"  # by the user, in `exponents`
    FREE = "free"  # nothing: the parameter reaches no output, and its column is bounded by hand


@dataclass(frozen=True)
class Binding:
    """What keeps the learning-rate exponent of one parameter from going lower; `rows` are the tight ones, if any."""

    kind: BindingKind
    rows: tuple[RowName, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.rows)) or _BINDINGS[self.kind]


_BINDINGS = {
    BindingKind.ROWS: "a bound of its own",
    BindingKind.RULE: "by rule, from what it is added to or multiplied with",
    BindingKind.GIVEN: "given in `exponents`",
    BindingKind.FREE: "nothing: it reaches no output",
}


@dataclass(frozen=True)
class SolvedDag:
    """What the LP and the recursions around it found, all exponents of m.

    `c` by parameter; `r` and `s` by DAG node; `g` by parameter (gradient entries at init, for eps); `binding` and
    `unconstrained` by parameter; `shadow_prices` by row.
    """

    solution: LpSolution
    c: dict[str, float]
    r: dict[str, float]
    s: dict[str, float]
    g: dict[str, float]
    binding: dict[str, Binding]
    shadow_prices: dict[Hashable, float]
    rows: int
    columns: int


class DagProgram:
    """The LP of one layer DAG. `solve` may be called again with other alignments; it starts from the last optimum.

    `caps`: the largest c that a parameter may get. `lower`: what each level must be at least.
    """

    def __init__(
        self, setting: FixedExponents, alignment: Mapping[str, Alignments], caps: Mapping[str, float] | None = None
    ) -> None:
        self.setting, self.dag = setting, setting.dag
        self.caps = dict(caps or {})
        self.alignment: dict[Any, Alignments] = dict(alignment)
        self._by_gradient = any(family.update == "gradient" for family in setting.families.values())
        rows = [row for node in self.dag.order for row in self._change_rows(node)]
        if self._by_gradient:
            rows += [row for node in reversed(self.dag.order) for row in self._gradient_rows(node)]
        self.lower: dict[Any, float] = {
            ("r", n): 0.0 if n in self.dag.outputs else min(0.0, setting.size(n))  # a growing tensor may meet a norm
            for n in self.dag.order
            if setting.changes(n) and not self._is_scaled(n)
        }
        self.solver = Solver(rows, self._rates(), self.lower, self.alignment)

    def solve(self, alignment: Mapping[str, Alignments] | None = None) -> SolvedDag:
        """Raises InfeasibleError when fixed rates leave no solution; its message names the conflict."""
        if alignment is not None:
            self.alignment.update(alignment)
        solution = self.solver.resolve(self.alignment)
        c = {str(name): value for name, value in solution.c.items()}
        c |= self._rates_by_rule(solution, c)
        at_init = self._gradients(None)
        return SolvedDag(
            solution=solution,
            c=c,
            r=_changes(solution.levels),
            s={node: self.setting.size(node) for node in self.dag.order},
            g=self._parameter_gradients(at_init),
            binding=self._binding(solution),
            shadow_prices=solution.shadow_prices,
            rows=len(self.solver.rows),
            columns=len(self.solver.rates) + len(solution.levels),
        )

    def rates(self, alignment: Mapping[str, Alignments]) -> dict[str, float]:
        """c of every weight that learns, and nothing else: what is needed at every measure while training."""
        self.alignment.update(alignment)
        return {str(name): value for name, value in self.solver.rates_at(self.alignment).items()}

    def _is_scaled(self, node: str) -> bool:
        """Whether a tensor only goes into scales, or sums that do: stability is asked of what comes out of them."""
        followers = self.dag.successors(node)
        if not followers or node in self.dag.outputs:
            return False

        def scales(n: str) -> bool:
            kind = self.dag.kind(n)
            return isinstance(kind, NumberFactor) or (isinstance(kind, Merge) and self._is_scaled(n))

        return all(map(scales, followers))

    # -- rows

    def _row(self, name: RowName, out: tuple[str, str], node: str, bound: Bound) -> Row:
        inputs = tuple(var[1] if var[0] == "c" else var for var in bound.inputs)
        return Row(name, out, inputs, bound.constant, bound.alignment, node, bound.weight)

    def _change_rows(self, node: str) -> list[Row]:
        if not self.setting.changes(node):
            return []
        bounds = dict.fromkeys(self.dag.kind(node).changes(node, self.setting))  # equal ones: q k of one layer
        return [self._row(RowName(node, bound.label), ("r", node), node, bound) for bound in bounds]

    def _gradient_rows(self, node: str) -> list[Row]:
        rows = []
        if node in self.dag.outputs:
            rows.append(Row(RowName(node, RowLabel(RowKind.LOSS)), ("G", node), (), 0.0))
        kind = self.dag.kind(node)
        for source, bound in dict.fromkeys(kind.gradients(node, self.setting)):
            rows.append(self._row(RowName(source, bound.label), ("G", source), node, bound))
        if isinstance(kind, Layer) and self._takes_gradient(kind.parameter):
            bound = kind.parameter_gradient(node, self.setting)
            rows.append(self._row(RowName(node, bound.label), ("g", kind.parameter), node, bound))
        return rows

    def _takes_gradient(self, parameter: str) -> bool:
        return self.setting.learns(parameter) and self.setting.family(parameter).update == "gradient"

    def _rates(self) -> dict[Any, Rate]:
        """One rate for each weight that learns; a fused weight counts as many times as the pieces it is cut into."""
        distances = self.dag.distances()
        rates: dict[Any, Rate] = {}
        for node, layer in self.dag.layers():
            name = layer.parameter
            if self.setting.learns(name):
                known = rates.get(name, Rate(cost=0.0))
                distance = max(known.distance, distances[node])
                fixed = self.setting.parameters[name].c
                bounds = (-math.inf, self.caps.get(name, math.inf))
                rates[name] = Rate(known.cost + layer.pieces, distance, fixed, bounds)
        return rates

    # -- what follows from the optimum

    def _rates_by_rule(self, solution: LpSolution, c: Mapping[str, float]) -> dict[str, float]:
        """Rates of vectors: the largest that leave every tensor behind them as stable as it must be."""
        setting = self.setting.with_vectors()
        need: dict[str, float] = dict.fromkeys(self.dag.outputs, 0.0)
        need |= _changes(self.solver.required(solution))
        for node in reversed(self.dag.order):
            for bound in self.dag.kind(node).changes(node, setting):
                if len(bound.inputs) == 1 and not self.setting.changes(source := bound.inputs[0][1]):
                    need[source] = max(need.get(source, 0.0), need.get(node, 0.0) - bound.constant)
        gradients = self._gradients(c) if self._by_gradient else {}
        rates = {}
        for node, vector in self.dag.vectors():
            decided = self.setting.parameters[vector.parameter]
            if not decided.learns:
                continue
            rate = need.get(node, 0.0)
            if self.setting.family(vector.parameter).update == "gradient":
                rate = 0.0 if decided.role == "scalar" else rate - gradients.get(node, 0.0)
            rates[vector.parameter] = round(rate, DECIMALS) + 0.0 if decided.c is None else decided.c
        return rates

    def _gradients(self, c: Mapping[str, float] | None) -> dict[str, float]:
        """G of every node by exact recursion from the outputs: at init, or (given c) with the updates as well."""
        found = dict.fromkeys(self.dag.outputs, 0.0)
        for node in reversed(self.dag.order):
            if node not in found:
                continue
            for source, bound in self.dag.kind(node).gradients(node, self.setting):
                if bound.label.kind is RowKind.UPDATED_GRADIENT and c is None:
                    continue
                value = bound.constant - bound.weight * (self.alignment[node].alpha if bound.alignment else 0.0)
                for kind, name in bound.inputs:
                    value += found[name] if kind == "G" else (c or {})[name]
                found[source] = min(found.get(source, value), value)
        return found

    def _parameter_gradients(self, at_nodes: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for node in self.dag.order:
            kind = self.dag.kind(node)
            if node in at_nodes and isinstance(kind, Layer | Vector):
                g = at_nodes[node]
                if isinstance(kind, Layer):
                    g += kind.parameter_gradient(node, self.setting).constant
                found[kind.parameter] = min(found.get(kind.parameter, g), g) + 0.0
        return found

    def _binding(self, solution: LpSolution) -> dict[str, Binding]:
        found = {}
        for name, decided in self.setting.parameters.items():
            rows = tuple(row for row in solution.binding.get(name, ()) if isinstance(row, RowName))
            if decided.c is not None:
                found[name] = Binding(BindingKind.GIVEN)
            elif name in solution.unconstrained:
                found[name] = Binding(BindingKind.FREE)
            else:
                found[name] = Binding(BindingKind.ROWS, rows) if name in solution.c else Binding(BindingKind.RULE)
        return found


def _changes(levels: Mapping[Any, float]) -> dict[str, float]:
    """Of the levels ("r", node), ("G", node), ("g", parameter): those that are changes, by node."""
    return {name: round(value, DECIMALS) + 0.0 for (kind, name), value in levels.items() if kind == "r"}
