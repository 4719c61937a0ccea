"""The constraints that keep a learning-rate exponent from being smaller, with their terms and numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from abcfx.exponents.dag_program import TOLERANCE, DagProgram, SolvedDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind, RowName
from abcfx.lp.rows import Row, is_tagged, written
from abcfx.rules import Layer
from abcfx.theory.parametrizations import Alignments, alignment_preset

# the constraints that a rate can be in
WORDS = {
    RowKind.ALPHA: "with a larger rate, the update of {parameter} times its input (dW x) would change {node} more "
    "at larger widths",
    RowKind.U: "with a larger rate, the update of {parameter} times the change of its input (dW dx) would change "
    "{node} more at larger widths",
    RowKind.UPDATED_GRADIENT: "with a larger rate, the updated {parameter} would send back larger gradients from "
    "{other} to {node}",
}


class Constraint(NamedTuple):
    """A constraint of the linear program that holds with equality, and so keeps some learning rate down.

    It says `out <= terms`: the exponent of an output's change, or of a gradient, is at most that of one of its causes.

    Attributes:
        name: name of its row in the linear program.
        words: the constraint in words.
        formula: the inequality in symbols, with the value of each side.
        price: shadow price: how much the sum of all c (learning rates m^-c; m, the width ratio) falls per unit by which
            it is relaxed.
        because: why `out` may not be smaller: rows further down the model, as formulas; empty if it has a bound of its
            own.
    """

    name: RowName
    words: str
    formula: str
    price: float
    because: tuple[str, ...]

    @property
    def node(self) -> str:
        """The name of the DAG node whose change or gradient the constraint bounds."""
        return self.name.node

    @property
    def tag(self) -> str:
        """The term that bounds the node, in short: "alpha" (dW x), "u" (dW dx), "updated gradient from head"."""
        return str(self.name.label)

    def to_dict(self) -> dict[str, object]:
        """Return the fields of the constraint as JSON-able values."""
        return {**self._asdict(), "name": str(self.name), "node": self.node, "tag": self.tag}


class Loosened(NamedTuple):
    """The solution if updates of one parameter did not line up with their inputs: alignments of 1/2 at its layers.

    Attributes:
        c: the parameter's own c then (its learning rate is m^-c; m, the width ratio).
        total: the sum of the c of all parameters then.
    """

    c: float
    total: float


class Constraints:
    """The constraints of a solved linear program over a layer DAG, to be looked up and put in words and formulas.

    The rows are written anew; the linear program is not solved again for that.

    Args:
        fixed: the exponents a and b that were fixed before the linear program, with the layer DAG.
        alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
        solved: the solution.
    """

    def __init__(self, fixed: FixedExponents, alignment: Mapping[str, Alignments], solved: SolvedDag) -> None:
        """Write the rows (inequalities) of the linear program anew; index them by name and by their variables.

        Args:
            fixed: the exponents a and b that were fixed before the linear program, with the layer DAG.
            alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
            solved: the solution.
        """
        self._fixed, self._alignment, self._solved = fixed, alignment, solved
        self._program = DagProgram(fixed, alignment)
        self._rows = {row.name: row for row in self._program.solver.rows if isinstance(row.name, RowName)}
        self._values: dict[Hashable, float] = {**solved.solution.c, **solved.solution.levels}
        self._using: dict[Hashable, list[Row]] = {}
        for row in self._rows.values():
            for name in dict.fromkeys(row.inputs):
                self._using.setdefault(name, []).append(row)

    @property
    def total(self) -> float:
        """The sum of the c of all parameters (rates m^-c; m, the width ratio), which the linear program minimises."""
        return self._solved.solution.objective

    def holding(self, parameter: str) -> list[Constraint]:
        """Return the constraints that keep a parameter's c from being smaller (its learning rate from being larger).

        None are returned for a parameter that takes no part in the linear program.
        """
        rows = self._solved.binding[parameter].rows
        return [self._constraint(name, self._rows[name], parameter) for name in rows]

    def loosened(self, parameter: str) -> Loosened | None:
        """Solve again with alignments of 1/2 at every use of one parameter: updates that do not line up with inputs.

        None if the parameter's c (rate m^-c) is given or follows by rule, or if its constraints have no alignment. m is
        the width ratio.
        """
        nodes = [node for node, kind in self._fixed.dag.layers() if kind.parameter == parameter]
        rows = [row for row in self._using.get(parameter, ()) if row.alignment and row.weight]
        is_free = self._fixed.parameters[parameter].c is None
        if not rows or not is_free or parameter not in self._solved.solution.c:
            return None
        independent = alignment_preset("no").inner
        alignments: dict[Hashable, tuple[float, float, float]] = dict(self._alignment.items())
        alignments.update(dict.fromkeys(nodes, independent))
        solution = self._program.solver.resolve(alignments)
        return Loosened(solution.c[parameter], solution.objective)

    def _constraint(self, name: RowName, row: Row, parameter: str) -> Constraint:
        """Describe a row (inequality) that keeps a parameter's c from being smaller: words, formula, price."""
        price = abs(self._solved.shadow_prices.get(name, 0.0))
        because = tuple(map(self._formula, self._because(row.out)))
        return Constraint(name, _words(name, parameter), self._formula(row, parameter), price, because)

    def _formula(self, row: Row, parameter: str | None = None) -> str:
        """Write a row (inequality) as `r(y) = 0 <= a + c - alpha = 0 + 1 - 1`: symbols, then values; no zeros.

        `parameter` is the one whose c is written as "c"; that of another is written with its name.
        """
        variables = [(_symbol(name, parameter), self._values[name]) for name in row.inputs]
        kept = [(symbol, value) for symbol, value in variables if value or symbol.startswith(("c", "r"))]
        kept += [(symbol, value) for symbol, value in self._constants(row) if value]
        if row.alignment and row.weight and (alignment := self._alignment_in(row)):
            factor = "" if row.weight == 1 else f"{row.weight:g} "
            kept.append((f"-{factor}{row.alignment}", -row.weight * alignment))
        kept = kept or [("0", 0.0)]
        symbols, values = _sum(symbol for symbol, _ in kept), _sum(f"{value + 0.0:.4g}" for _, value in kept)
        total = f" = {sum(value for _, value in kept) + 0.0:.4g}" if len(kept) > 1 else ""
        return f"{_symbol(row.out)} = {self._values[row.out] + 0.0:.4g} <= {symbols} = {values}{total}"

    def _alignment_in(self, row: Row) -> float:
        """Return the alignment exponent (alpha, omega or u) in a row (inequality) of the linear program; 0 if none."""
        return float(getattr(self._alignment[str(row.layer)], row.alignment)) if row.alignment else 0.0

    def _constants(self, row: Row) -> list[tuple[str, float]]:
        """Split the constant of an inequality of the linear program into named parts, each with its value, for print.

        The parts are a (exponent of the multiplier), b (of the init's std) and s(x) (the input x is ~ m^-s; m, the
        width ratio). A constant whose parts are not known is returned as one entry.
        """
        kind = self._fixed.dag.kind(str(row.layer))
        if isinstance(kind, Layer):
            at_init = row.alignment == "omega"  # a relative update follows the size of the whole weight
            a, b = self._fixed.a(str(row.layer)), self._fixed.b(kind.parameter)
            b = self._fixed.init(str(row.layer)) if at_init else b
            parts = [("a", a), ("b", b), ("s(x)", self._fixed.trained_size(kind.inputs[0]))]
            wanted = {"alpha": (0, 2), "u": (0,), "omega": (0, 1)}.get(row.alignment or "", ())
            relative = self._fixed.family(kind.parameter).update == "relative" and row.alignment in ("alpha", "u")
            chosen = [parts[i] for i in sorted({*wanted, *((1,) if relative else ())})]
            if abs(sum(value for _, value in chosen) - row.constant) < TOLERANCE:
                return chosen
        return [(f"{row.constant:.4g}", row.constant)] if row.constant else []

    def _because(self, level: Hashable) -> list[Row]:
        """Find why an exponent may not be smaller: a shortest chain of rows that hold with equality.

        The exponent `level` is r or G of a node (change ~ m^-r, gradient ~ m^-G; m, the width ratio). A row is an
        inequality of the linear program. The chain leads to an exponent with a bound of its own, such as r
        >= 0; it is empty if `level` itself has one.
        """
        came_by: dict[Hashable, tuple[Hashable, Row] | None] = {level: None}
        waiting = deque([level])
        while waiting:
            at = waiting.popleft()
            if self._is_at_bound(at):
                path = []
                while (step := came_by[at]) is not None:
                    at, row = step
                    path.append(row)
                return path[::-1]
            for row in self._using.get(at, ()):
                if row.out not in came_by and self._is_tight(row):
                    came_by[row.out] = at, row
                    waiting.append(row.out)
        return []

    def _is_at_bound(self, level: Hashable) -> bool:
        """Whether the exponent `level` has the smallest value that it may have.

        It is r or G of a DAG node (change ~ m^-r, gradient ~ m^-G; m, the width ratio).
        """
        lower = self._program.lower.get(level)
        return lower is not None and self._values[level] - lower <= TOLERANCE

    def _is_tight(self, row: Row) -> bool:
        """Whether a row (inequality) of the linear program holds with equality in the solution."""
        total = sum(self._values[name] for name in row.inputs) + row.constant - row.weight * self._alignment_in(row)
        return total - self._values[row.out] <= TOLERANCE


def _words(name: RowName, parameter: str) -> str:
    """Write in words the constraint that an inequality of the linear program sets on a parameter's rate."""
    return WORDS.get(name.kind, name.kind.sentence).format(parameter=parameter, node=name.node, other=name.label.other)


def _sum(terms: Iterable[str]) -> str:
    """Write terms, given as text, as a sum; those that begin with a minus are subtracted."""
    first, *others = terms
    signed = [f" - {term[1:]}" if term.startswith("-") else f" + {term}" for term in others]
    return "".join([first, *signed])


def _symbol(name: Hashable, parameter: str | None = None) -> str:
    """Write a variable of the linear program as text: `c` of this parameter, `c(name)` of another one, `r(node)`."""
    if is_tagged(name):
        return written(name)
    return "c" if name == parameter else f"c({name})"
