"""The constraints that hold a learning-rate exponent up, each with its terms and numbers, and a solve without them."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from abcfx.exponents.dag_program import TOLERANCE, DagProgram, SolvedDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind, RowName
from abcfx.lp.rows import Row
from abcfx.rules import Layer
from abcfx.theory.parametrizations import Alignments, alignment_preset

WORDS = {
    RowKind.ALPHA: "the update of {parameter} times its input (dW x0) must not blow up {node}",
    RowKind.U: "the update of {parameter} times the change of its input (dW dx) must not blow up {node}",
    RowKind.UPDATED_GRADIENT: "the updated {parameter} must not send too large a gradient from {other} back to {node}",
}


class Constraint(NamedTuple):
    """One tight row `out <= terms`.

    Attributes:
        name: of the row, as in `solution.shadow_prices`.
        words: the same in words.
        formula: the inequality in symbols, with the value of each side.
        price: how much the sum of all c falls per unit by which it is loosened; 0 where it is not scarce.
        because: why `out` may not be less, where that is not simply its own bound: rows further downstream.
    """

    name: RowName
    words: str
    formula: str
    price: float
    because: tuple[str, ...]

    @property
    def node(self) -> str:
        """The DAG node that the row keeps stable."""
        return self.name.node

    @property
    def tag(self) -> str:
        """The term that the row bounds, in short: "alpha", "u", "updated gradient from head"."""
        return str(self.name.label)

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON-able values."""
        return {**self._asdict(), "name": str(self.name), "node": self.node, "tag": self.tag}


class Loosened(NamedTuple):
    """What c, and the sum of all c, would be with the alignments of one parameter's layers at 1/2."""

    c: float
    total: float


class Constraints:
    """The rows of a solved DAG, by the exponents that they bound. Rows are written anew, nothing is solved for that."""

    def __init__(self, setting: FixedExponents, alignment: Mapping[str, Alignments], solved: SolvedDag) -> None:
        self._setting, self._alignment, self._solved = setting, alignment, solved
        self._system = DagProgram(setting, alignment)
        self._rows = {row.name: row for row in self._system.solver.rows if isinstance(row.name, RowName)}
        self._values: dict[Hashable, float] = {**solved.solution.c, **solved.solution.levels}
        self._using: dict[Hashable, list[Row]] = {}
        for row in self._rows.values():
            for name in dict.fromkeys(row.inputs):
                self._using.setdefault(name, []).append(row)

    @property
    def total(self) -> float:
        """The sum of all c, the objective."""
        return self._solved.solution.objective

    def holding(self, parameter: str) -> list[Constraint]:
        """The tight rows that keep c of a parameter from going lower; none for one without a column in the LP."""
        rows = self._solved.binding[parameter].rows
        return [self._constraint(name, self._rows[name], parameter) for name in rows]

    def loosened(self, parameter: str) -> Loosened | None:
        """Solves again with alignments of 1/2 at every use of a parameter; None where no alignment has a say."""
        nodes = [node for node, kind in self._setting.dag.layers() if kind.parameter == parameter]
        rows = [row for row in self._using.get(parameter, ()) if row.alignment and row.weight]
        is_free = self._setting.parameters[parameter].c is None
        if not rows or not is_free or parameter not in self._solved.solution.c:
            return None
        independent, _ = alignment_preset("no")
        alignments: dict[Hashable, tuple[float, float, float]] = dict(self._alignment.items())
        alignments.update(dict.fromkeys(nodes, independent))
        solution = self._system.solver.resolve(alignments)
        return Loosened(solution.c[parameter], solution.objective)

    def _constraint(self, name: RowName, row: Row, parameter: str) -> Constraint:
        price = abs(self._solved.shadow_prices.get(name, 0.0))
        because = tuple(map(self._formula, self._because(row.out)))
        return Constraint(name, _words(name, parameter), self._formula(row, parameter), price, because)

    def _formula(self, row: Row, parameter: str | None = None) -> str:
        """`r(y) = 0 <= a + c - alpha = 0 + 1 - 1`: symbols, then their values; what is zero is left out."""
        terms = [(_symbol(name, parameter), self._values[name]) for name in row.inputs]
        terms += self._constants(row)
        if row.alignment and row.weight:
            alignment = getattr(self._alignment[str(row.layer)], row.alignment)
            factor = "" if row.weight == 1 else f"{row.weight:g} "
            terms.append((f"- {factor}{row.alignment}", -row.weight * alignment))
        kept = [(symbol, value) for symbol, value in terms if value or symbol[:1] in "cr"] or [("0", 0.0)]
        symbols = " + ".join(symbol for symbol, _ in kept).replace("+ - ", "- ").replace("+ -", "- ")
        values = " + ".join(f"{value + 0.0:.4g}" for _, value in kept).replace("+ -", "- ")
        total = f" = {sum(value for _, value in kept) + 0.0:.4g}" if len(kept) > 1 else ""
        return f"{_symbol(row.out)} = {self._values[row.out] + 0.0:.4g} <= {symbols} = {values}{total}"

    def _constants(self, row: Row) -> list[tuple[str, float]]:
        """The constant of a row, in the symbols that it is the sum of where that is known (see `Layer.change`)."""
        kind = self._setting.dag.kind(str(row.layer))
        if isinstance(kind, Layer):
            a, b, s = (
                self._setting.a(str(row.layer)),
                self._setting.b(kind.parameter),
                self._setting.size(kind.inputs[0]),
            )
            parts = [("a", a), ("b", b), ("s(x)", s)]
            wanted = {"alpha": (0, 2), "u": (0,), "omega": (0, 1)}.get(row.alignment or "", ())
            relative = self._setting.family(kind.parameter).update == "relative" and row.alignment in ("alpha", "u")
            chosen = [parts[i] for i in sorted({*wanted, *((1,) if relative else ())})]
            if abs(sum(value for _, value in chosen) - row.constant) < TOLERANCE:
                return chosen
        return [(f"{row.constant:.4g}", row.constant)] if row.constant else []

    def _because(self, level: Hashable) -> list[Row]:
        """Why a level may not be less: the shortest way of tight rows to a level that is at its own bound."""
        came_by: dict[Hashable, tuple[Hashable, Row] | None] = {level: None}
        waiting = deque([level])
        while waiting:
            at = waiting.popleft()
            if self._is_at_bound(at):
                way = []
                while (step := came_by[at]) is not None:
                    at, row = step
                    way.append(row)
                return way[::-1]
            for row in self._using.get(at, ()):
                if row.out not in came_by and self._is_tight(row):
                    came_by[row.out] = at, row
                    waiting.append(row.out)
        return []

    def _is_at_bound(self, level: Hashable) -> bool:
        lower = self._system.lower.get(level)
        return lower is not None and self._values[level] - lower <= TOLERANCE

    def _is_tight(self, row: Row) -> bool:
        alignment = getattr(self._alignment[str(row.layer)], row.alignment) if row.alignment else 0.0
        total = sum(self._values[name] for name in row.inputs) + row.constant - row.weight * alignment
        return total - self._values[row.out] <= TOLERANCE


def _words(name: RowName, parameter: str) -> str:
    """A row that bounds the rate of a parameter, in words."""
    return WORDS.get(name.kind, name.kind.sentence).format(parameter=parameter, node=name.node, other=name.label.other)


def _symbol(name: Hashable, parameter: str | None = None) -> str:
    """`c` of the parameter in question, `c(name)` of another, `r(node)`."""
    if isinstance(name, tuple):
        return f"{name[0]}({name[1]})"
    return "c" if name == parameter else f"c({name})"
