"""The linear program of a layer DAG: its rows, its solution, and what follows from that for vectors and gradients."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum

from abcfx.exponents.fixed import FixedExponents
from abcfx.exponents.recursion import least_changes
from abcfx.lp.names import RowKind, RowLabel, RowName
from abcfx.lp.program import DECIMALS, LpSolution, Solver
from abcfx.lp.rows import Rate, Row, is_tagged
from abcfx.rules import Bound, Layer, Vector
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.theory.parametrizations import Alignments

TOLERANCE = 1e-6


class BindingKind(Enum):
    """A kind of reason why a learning rate m^-c (m, the width ratio) cannot be larger, so that c is not smaller."""

    ROWS = "rows"  # rows of the linear program are tight
    RULE = "rule"  # c is not in the linear program: it is the smallest that the tensor it acts on allows
    GIVEN = "given"  # the user gave c in `exponents`
    FREE = "free"  # nothing: the parameter reaches no output, and c is kept within fixed bounds


@dataclass(frozen=True)
class Binding:
    """The reason why a parameter's learning rate m^-c (m, the width ratio) is not larger, so that c is not smaller.

    Attributes:
        kind: the kind of reason.
        rows: names of the inequalities of the linear program that hold with equality and have c in them.
    """

    kind: BindingKind
    rows: tuple[RowName, ...] = ()

    def __str__(self) -> str:
        """Return the names of the inequalities of the linear program that keep a rate down, or a reason in words."""
        return ", ".join(map(str, self.rows)) or _BINDINGS[self.kind]


_BINDINGS = {
    BindingKind.ROWS: "a bound of its own",
    BindingKind.RULE: "by rule, from the tensor that it acts on",
    BindingKind.GIVEN: "given in `exponents`",
    BindingKind.FREE: "nothing: it reaches no output",
}


@dataclass(frozen=True)
class SolvedDag:
    """The solution of the linear program of a model's layer DAG, and what follows from it.

    All exponents are of the width ratio m.

    Attributes:
        solution: the solution of the linear program, which weights alone are in.
        c: exponent of the learning rate, m^-c, by parameter, vectors included.
        r: exponent of the change of a tensor, m^-r, by DAG node.
        s: exponent of the magnitude (RMS entry) of a tensor at init, m^-s, by DAG node.
        g: exponent of the gradient's entries at init, m^-g, by parameter; eps follows it.
        binding: why c is not smaller, by parameter.
        shadow_prices: d(sum of all c) / d(right side) by name of row or bound.
        rows: number of rows of the linear program.
        columns: number of columns of the linear program.
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
    """The linear program that finds c (learning rate m^-c; m, the width ratio) of the weights in a layer DAG.

    The layer DAG is the graph of the model's layers and other ops. The program can be solved again at other alignments,
    starting at the last optimum.

    Args:
        fixed: roles and the exponents a (multiplier) and b (init), with the layer DAG.
        alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
        caps: largest c that a parameter may get, by name; a parameter that is not in it may get any.
    """

    def __init__(
        self, fixed: FixedExponents, alignment: Mapping[str, Alignments], caps: Mapping[str, float] | None = None
    ) -> None:
        """Write the rows (inequalities) that DAG nodes give and the lower bounds of r (outputs change by ~ m^-r).

        Args:
            fixed: roles and the exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b), with the layer
                DAG.
            alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
            caps: largest c (rate m^-c) that a parameter may get, by name.
        """
        self.fixed, self.dag = fixed, fixed.dag
        self.caps = dict(caps or {})
        self.alignment: dict[Hashable, Alignments] = dict(alignment.items())
        self._by_gradient = any(family.update == "gradient" for family in fixed.families.values())
        rows = [row for node in self.dag.order for row in self._change_rows(node)]
        if self._by_gradient:
            rows += [row for node in reversed(self.dag.order) for row in self._gradient_rows(node)]
        self.lower: dict[Hashable, float] = {("r", node): least for node, least in least_changes(fixed).items()}
        self.solver = Solver(rows, self._rates(), self.lower, self.alignment)

    def solve(self, alignment: Mapping[str, Alignments] | None = None) -> SolvedDag:
        """Solve the linear program for learning rates, and find what follows for biases, gains and gradients.

        Args:
            alignment: new (alpha, omega, u) by layer node; layers that are not in it keep those they have.

        Raises:
            InfeasibleError: c that the user gave leave no solution; the message names the conflict.
        """
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
            s={node: self.fixed.size(node) for node in self.dag.order},
            g=self._parameter_gradients(at_init),
            binding=self._binding(solution),
            shadow_prices=solution.shadow_prices,
            rows=len(self.solver.rows),
            columns=len(self.solver.rates) + len(solution.levels),
        )

    def rates(self, alignment: Mapping[str, Alignments]) -> dict[str, float]:
        """Solve at new alignments of updates with inputs, and return only c of every trained weight (rate m^-c).

        m is the width ratio. It takes less time than `solve`, for use in training.

        Args:
            alignment: new (alpha, omega, u) by layer node.
        """
        self.alignment.update(alignment)
        return {str(name): value for name, value in self.solver.rates_at(self.alignment).items()}

    # -- rows

    def _row(self, name: RowName, out: tuple[str, str], node: str, bound: Bound) -> Row:
        """Make a row (inequality) of the linear program out of an upper bound on one of its variables.

        Args:
            name: name of the row.
            out: the variable: ("r", node), ("G", node) or ("g", parameter).
            node: the layer node whose alignment is in the bound.
            bound: the bound.
        """
        inputs = tuple(var[1] if var[0] == "c" else var for var in bound.inputs)
        return Row(name, out, inputs, bound.constant, bound.alignment, node, bound.weight)

    def _change_rows(self, node: str) -> list[Row]:
        """Return the rows (inequalities) that bound r of a DAG node, whose output changes by ~ m^-r.

        They are inequalities of the linear program for learning rates; m is the width ratio.
        """
        if not self.fixed.changes(node):
            return []
        bounds = dict.fromkeys(self.dag.kind(node).changes(node, self.fixed))  # once each: q k of one layer repeats
        return [self._row(RowName(node, bound.label), ("r", node), node, bound) for bound in bounds]

    def _gradient_rows(self, node: str) -> list[Row]:
        """Return the rows (inequalities) of the linear program by which a DAG node bounds gradients.

        They are about G of its inputs (gradient ~ m^-G; m, the width ratio), and about g of its weight.
        """
        rows = []
        if node in self.dag.outputs:
            rows.append(Row(RowName(node, RowLabel(RowKind.LOSS)), ("G", node), (), 0.0))
        kind = self.dag.kind(node)
        for source, bound in dict.fromkeys(kind.gradients(node, self.fixed)):
            rows.append(self._row(RowName(source, bound.label), ("G", source), node, bound))
        if isinstance(kind, Layer) and self._takes_gradient(kind.parameter):
            bound = kind.parameter_gradient(node, self.fixed.once_trained)
            rows.append(self._row(RowName(node, bound.label), ("g", kind.gradient_name(node)), node, bound))
        return rows

    def _takes_gradient(self, parameter: str) -> bool:
        """Whether a parameter learns by an optimizer such as SGD, whose updates are as large as the gradient."""
        return self.fixed.learns(parameter) and self.fixed.family(parameter).update == "gradient"

    def _rates(self) -> dict[Hashable, Rate]:
        """Return, for each weight that learns, its variable of the linear program: c (rate m^-c), its cost and bounds.

        A fused weight costs as much as the pieces that its output is cut into, however often it is used. The rate of a
        weight none of whose dims grow does not rise with width: c is the least that the weight and its multipliers
        allow, so that no other layer is slowed down for it. m is the width ratio.
        """
        distances = self.dag.distances()
        rates: dict[Hashable, Rate] = {}
        for node, layer in self.dag.layers():
            name = layer.parameter
            if self.fixed.learns(name):
                decided = self.fixed.parameters[name]
                known = rates.get(name, Rate(cost=0.0))
                distance = max(known.distance, distances[node])
                floor = -math.inf if decided.grows else -self.fixed.family(name).rate_shift(self.fixed.a(node))
                low = max(known.bounds[0], floor)
                bounds = (low, max(low, self.caps.get(name, math.inf)))
                rates[name] = Rate(max(known.cost, layer.pieces), distance, decided.c, bounds)
        return rates

    # -- what follows from the optimum

    def _rates_by_rule(self, solution: LpSolution, c: Mapping[str, float]) -> dict[str, float]:
        """Find c of biases, gains and other vectors, whose rate is m^-c (m, the width ratio).

        It is the smallest at which no tensor behind the vector changes by more than the solution allows.

        Args:
            solution: the solution of the linear program, which has no vectors.
            c: the c of the weights.
        """
        with_vectors = self.fixed.with_vectors()
        need: dict[str, float] = dict.fromkeys(self.dag.outputs, 0.0)
        need |= _changes(self.solver.required(solution))
        for node in reversed(self.dag.order):
            for bound in self.dag.kind(node).changes(node, with_vectors):
                if len(bound.inputs) == 1 and not self.fixed.changes(source := bound.inputs[0][1]):
                    least = -math.inf if self._is_number_of_vector(source) else 0.0
                    need[source] = max(need.get(source, least), need.get(node, 0.0) - bound.constant)
        gradients = self._gradients(c) if self._by_gradient else {}
        rates = {}
        for node, vector in self.dag.vectors():
            decided = self.fixed.parameters[vector.parameter]
            if not decided.learns:
                continue
            rate = need.get(node, 0.0)
            if self.fixed.family(vector.parameter).update == "gradient":
                rate = 0.0 if decided.role == "scalar" else rate - gradients.get(node, 0.0)
            rates[vector.parameter] = round(rate, DECIMALS) + 0.0 if decided.c is None else decided.c
        return rates

    def _is_number_of_vector(self, node: str) -> bool:
        """Whether a DAG node is a vector of parameters times a number, no tensor that must be stable by itself."""
        return node in self.dag and self.dag.node(node).is_parametric and isinstance(self.dag.kind(node), NumberFactor)

    def _gradients(self, c: Mapping[str, float] | None) -> dict[str, float]:
        """Return G of every DAG node, whose gradient is ~ m^-G (m, the width ratio), from the outputs back.

        Args:
            c: exponent of the learning rate of each weight, to count what its updates send back; None for gradients at
                init.
        """
        found = dict.fromkeys(self.dag.outputs, 0.0)
        for node in reversed(self.dag.order):
            if node not in found:
                continue
            for source, bound in self.dag.kind(node).gradients(node, self.fixed):
                if bound.label.kind is RowKind.UPDATED_GRADIENT and c is None:
                    continue
                value = bound.constant - bound.weight * (self.alignment[node].alpha if bound.alignment else 0.0)
                for kind, name in bound.inputs:
                    value += found[name] if kind == "G" else (c or {})[name]
                found[source] = min(found.get(source, value), value)
        return found

    def _parameter_gradients(self, at_nodes: Mapping[str, float]) -> dict[str, float]:
        """Return g of each parameter, whose gradient is ~ m^-g (m, the width ratio).

        Columns of a weight that meet an input which does not grow have larger gradients and do not count: an eps that
        followed these would be too large for the others.

        Args:
            at_nodes: G of each node, whose gradient is ~ m^-G.
        """
        found: dict[str, float] = {}
        for node in self.dag.order:
            kind = self.dag.kind(node)
            is_beside = isinstance(kind, Layer) and kind.part is not None and not kind.part.grows
            if node in at_nodes and isinstance(kind, Layer | Vector) and not is_beside:
                g = at_nodes[node]
                if isinstance(kind, Layer):
                    g += kind.parameter_gradient(node, self.fixed).constant
                found[kind.parameter] = min(found.get(kind.parameter, g), g) + 0.0
        return found

    def _binding(self, solution: LpSolution) -> dict[str, Binding]:
        """Return for each parameter why its c (rate m^-c) is not smaller: constraints, a rule, or the user's choice.

        m is the width ratio.
        """
        found = {}
        for name, decided in self.fixed.parameters.items():
            rows = tuple(row for row in solution.binding.get(name, ()) if isinstance(row, RowName))
            if decided.c is not None:
                found[name] = Binding(BindingKind.GIVEN)
            elif name in solution.unconstrained:
                found[name] = Binding(BindingKind.FREE)
            else:
                found[name] = Binding(BindingKind.ROWS, rows) if name in solution.c else Binding(BindingKind.RULE)
        return found


def _changes(levels: Mapping[Hashable, float]) -> dict[str, float]:
    """Return r of each DAG node, whose output changes by ~ m^-r (m, the width ratio).

    Args:
        levels: the values of all variables r, G and g of the linear program.
    """
    return {
        str(name[1]): round(value, DECIMALS) + 0.0
        for name, value in levels.items()
        if is_tagged(name) and name[0] == "r"
    }


def solution_notes(fixed: FixedExponents, solved: SolvedDag) -> tuple[str, ...]:
    """Return notes for the report: products that slow learning, outputs that grow with width, unused parameters.

    Args:
        fixed: the exponents that were fixed before the linear program, with the layer DAG.
        solved: the solution.
    """
    notes = []
    for node in fixed.dag.order:
        kind = fixed.dag.kind(node)
        slowed = max((solved.r.get(n, 0.0) - max(solved.s[n], 0.0) for n in kind.sources), default=0.0)
        if isinstance(kind, Product) and fixed.growth(*kind.contracted) > 0 and slowed > TOLERANCE:
            notes.append(
                f"{node}: a product of activations sums over a dim that grows and is not divided by that dim, as in "
                f"attention with 1/sqrt(head_dim) where head_dim grows. Its inputs may only change by m^-{slowed:g}, "
                f"so every layer before it learns slowly. Divide by the dim (c / head_dim), or let the number of heads "
                f"grow instead."
            )
        if node in fixed.dag.outputs and fixed.size(node) < -TOLERANCE:
            notes.append(f"{node}: at init, this output of the model grows with the width like m^{-fixed.size(node):g}")
    unused = [name for name, p in fixed.parameters.items() if p.role == "plain" and not p.a]
    if unused:
        some = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        notes.append(f"not used by the traced graph, so left at the plain lr: {some}")
    return tuple(notes)
