"""Why one parameter has the numbers that it has, in words: its role, dims that grow, what holds c, what follows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import assign_exponents
from abcfx.exponents.fixed import ParameterExponents
from abcfx.exponents.roles import RoleReason
from abcfx.report.consequences import consequences
from abcfx.report.constraints import Constraint, Constraints, Loosened
from abcfx.report.names import tied_names
from abcfx.rules import Layer, Vector
from abcfx.rules.extents import Dim, ParameterDim
from abcfx.rules.kinds import Kind, Merge, Norm, Product
from abcfx.support.location import location

if TYPE_CHECKING:
    from abcfx.outcome import Outcome
    from abcfx.transformed import Transformed

WIDTH = 100
USES_SHOWN = 3
MEANING = {
    "embedding": "The sums that it makes do not get longer with width.",
    "hidden": "The sums that it makes get longer with width.",
    "readout": "The sums that it makes get longer with width; what comes out is no wider than in the base.",
    "vector": "It acts entry by entry, so that no sum gets longer with width.",
    "scalar": "Nothing about it changes with width.",
    "plain": "It is left as the model has it: own init, the base learning rate, no multiplier.",
}
MEANING_OF_TIED = "As a table its sums do not get longer with width; as a readout they do."


class DimGrowth(NamedTuple):
    """One dim: its size, that of the base (None without one), exponent of m, and "fan_in", "fan_out" or ""."""

    dim: int
    size: int
    base_size: int | None
    growth: float
    side: str


class Paragraph(NamedTuple):
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Why a parameter has its numbers; `print` it, or read the fields.

    Attributes:
        name: of the parameter, as in the spec.
        aliases: other names of the same, tied parameter.
        role, why: as in the spec.
        dims: how each dim grows.
        constraints: the tight constraints that hold its c; none where c is given or follows from a rule.
        loosened: c, and the sum of all c, with alignments of 1/2 at this parameter's layers alone.
        row: its row of the spec.
        paragraphs: all of it in words.
    """

    name: str
    aliases: tuple[str, ...]
    role: str
    why: str
    dims: tuple[DimGrowth, ...]
    constraints: tuple[Constraint, ...]
    loosened: Loosened | None
    row: dict[str, Any]
    paragraphs: tuple[Paragraph, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        named = {
            "dims": [each._asdict() for each in self.dims],
            "constraints": [each.to_dict() for each in self.constraints],
            "loosened": None if self.loosened is None else self.loosened._asdict(),
            "paragraphs": [each._asdict() for each in self.paragraphs],
        }
        return asdict(self) | named

    def __str__(self) -> str:
        lines = [self.name]
        for title, body in self.paragraphs:
            lines += ["", title]
            for line in body:
                lines += textwrap.wrap(
                    line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
                ) or [""]
        return "\n".join(lines)

    def __rich__(self) -> Group:
        parts: list[Any] = [Text(self.name, style="bold")]
        for title, body in self.paragraphs:
            parts += [Text(f"\n{title}", style="bold cyan"), *(Padding(Text(line), (0, 0, 0, 2)) for line in body)]
        return Group(*parts)


class Explainer:
    """Explains parameters of one result; the rows of its LP are written once."""

    def __init__(self, result: Transformed) -> None:
        self._result, self._analysis = result, result.outcome
        setting = self._analysis.fixed
        self._constraints = Constraints(setting, self._analysis.alignments, result.solution)
        self._uses = setting.dag.uses()
        self._parameters = dict(self._analysis.captured.model.named_parameters())
        self._tied = {names[0]: tuple(names[1:]) for names in tied_names(self._analysis.captured.model)}

    def explain(self, name: str) -> Explanation:
        """See `Transformed.explain`."""
        name = self._resolved(name)
        row, decided = self._result.spec[name], self._analysis.fixed.parameters[name]
        aliases, dims = self._tied.get(name, ()), self._dims(name)
        is_held = decided.c is None
        constraints = tuple(self._constraints.holding(name)) if is_held else ()
        loosened = self._constraints.loosened(name) if is_held else None
        paragraphs = [
            Paragraph(f"Role: {row['role']}", tuple(self._role_lines(name, row, aliases))),
            Paragraph("How it grows", tuple(_dim_lines(dims, self._analysis))),
            Paragraph(self._holding_title(name), tuple(self._holding_lines(name, constraints))),
            Paragraph("What would loosen it", tuple(self._loosening_lines(name, constraints, loosened))),
            Paragraph("What follows", tuple(consequences(self._result, name, self._parameters[name].requires_grad))),
        ]
        return Explanation(
            name=name,
            aliases=aliases,
            role=row["role"],
            why=row["why"],
            dims=dims,
            constraints=constraints,
            loosened=loosened,
            row=dict(row),
            paragraphs=tuple(p for p in paragraphs if p.lines),
        )

    def _resolved(self, name: str) -> str:
        """The name in the spec of a parameter, a name tied to it, or the module whose weight it is."""
        known = {alias: first for first, aliases in self._tied.items() for alias in aliases}
        known |= {each: each for each in self._result.spec}
        short = {each.removesuffix(".weight"): first for each, first in known.items()}
        found = known.get(name, short.get(name))
        if found is None:
            within = [each for each in known if each.startswith(f"{name}.")]
            close = within[:3] or get_close_matches(name, list(known), n=3, cutoff=0.3) or list(known)[:3]
            raise InvalidInputError(
                f"explain: the model has no parameter {name!r}.\n  Names that are close: {', '.join(close)}.\n"
                f"  To fix: result.explain({close[0]!r})"
            )
        return found

    # -- role

    def _role_lines(self, name: str, row: Mapping[str, Any], aliases: tuple[str, ...]) -> list[str]:
        is_both = row["role"] == "embedding" and self._analysis.fixed.parameters[name].e_in > 0
        lines = [f"The role is {row['role']}: {row['why']}. {MEANING_OF_TIED if is_both else MEANING[row['role']]}"]
        if self._result.plan[name].why.reason is RoleReason.GIVEN:
            own = self._own_role(name)
            lines.append(f"The graph alone says {own.role}: {own.why}.")
        if aliases:
            lines.append(f"One parameter, also known as {', '.join(aliases)}.")
        nodes = self._uses.get(name, [])
        lines += [f"Used {self._use(node)}." for node in nodes[:USES_SHOWN]]
        if len(nodes) > USES_SHOWN:
            lines.append(f"Used {len(nodes) - USES_SHOWN} times more.")
        if not self._parameters[name].requires_grad:
            lines.append("Frozen (requires_grad is False): it is in no optimizer group and does not change.")
        return lines

    def _own_role(self, name: str) -> ParameterExponents:
        setting = self._analysis.fixed
        table = self._result.header.parametrization
        return assign_exponents(setting.dag, setting.widths, {name: self._parameters[name]}, table)[name]

    def _use(self, node: str) -> str:
        """How and where a parameter is used at a DAG node."""
        dag = self._analysis.fixed.dag
        kind, place = dag.kind(node), location(dag.node(node).fx_node)
        if isinstance(kind, Layer):
            words = f"as the weight of a layer, at {place}"
            if kind.pieces > 1:
                words += f"; what comes out is cut into {kind.pieces}, so that it counts {kind.pieces} times"
            return words
        ways = [(after, dag.kind(after)) for after in dag.successors(node)]
        shown = [f"{_vector_way(node, other)} {after}" for after, other in ways[:USES_SHOWN]]
        return f"{', '.join(shown) or 'as an output'}, at {place}"

    # -- dims

    def _dims(self, name: str) -> tuple[DimGrowth, ...]:
        widths, parameter = self._analysis.fixed.widths, self._parameters[name]
        base = widths.base_parameters[name].shape if widths.has_base else None
        sides = self._sides(name)
        growth = widths.parameter(name, tuple(parameter.shape))
        return tuple(
            DimGrowth(i, size, None if base is None else base[i], growth[i], sides.get(i, ""))
            for i, size in enumerate(parameter.shape)
        )

    def _sides(self, name: str) -> dict[int, str]:
        """Which dims of a weight are summed over and which come out, at its first use as a layer."""
        dag = self._analysis.fixed.dag
        layers = [kind for node in self._uses.get(name, []) if isinstance(kind := dag.kind(node), Layer)]
        if not layers:
            return {}

        def own(dims: tuple[Dim, ...]) -> list[int]:
            return [d.index for d in dims if isinstance(d, ParameterDim) and d.parameter == name]

        first = layers[0]
        return dict.fromkeys(own(first.fan_out), "fan_out") | dict.fromkeys(own(first.fan_in), "fan_in")

    # -- constraints

    def _holding_title(self, name: str) -> str:
        learns = self._parameters[name].requires_grad
        return f"What holds c = {_c(self._result, name):.4g}" if learns else "No learning rate"

    def _holding_lines(self, name: str, constraints: tuple[Constraint, ...]) -> list[str]:
        row, decided = self._result.spec[name], self._analysis.fixed.parameters[name]
        if decided.c is not None:
            r = "" if row["r"] is None else f" With it the change of its output is ~ m^-r with r = {row['r']:.4g}."
            return [f"It was given in `exponents`; the other parameters are solved around it.{r}"]
        if not self._parameters[name].requires_grad:
            return ["It does not learn, so that no constraint is about it."]
        if row["role"] == "plain":
            return ["It takes no part in the linear program: plain parameters keep the base learning rate."]
        if name not in self._result.solution.solution.c:
            return self._rule_lines(name)
        if not constraints:
            return ["Nothing: it reaches no output, and is kept within bounds by hand."]
        lines = []
        for each in constraints:
            lines += [f"{each.tag}: {each.words}.", f"    {each.formula}"]
            lines += [f"    {'where' if i == 0 else 'and'} {reason}" for i, reason in enumerate(each.because)]
        return lines

    def _rule_lines(self, name: str) -> list[str]:
        family, c = self._analysis.fixed.families[name], _c(self._result, name)
        nodes = [after for node in self._uses[name] for after in self._analysis.fixed.dag.successors(node)]
        lines = [
            "It has no column in the linear program: by rule, c is the least at which what it is added to or "
            "multiplied onto stays as stable as everything behind needs it."
        ]
        changes = self._result.solution.r
        shown = [f"r({node}) = {changes[node]:.4g}" for node in nodes[:USES_SHOWN] if node in changes]
        if shown:
            lines.append(f"What it acts on changes by m^-r in any case: {', '.join(shown)}.")
        if family.update == "gradient" and c:
            lines.append(f"{family.name} moves it by its gradient, which is ~ m^-g: c makes up for that.")
        return lines

    def _loosening_lines(self, name: str, constraints: tuple[Constraint, ...], loosened: Loosened | None) -> list[str]:
        if not constraints:
            return []
        lines = []
        several = len({each.node for each in constraints}) > 1
        tags = [f"{each.tag} of {each.node}" if several else each.tag for each in constraints]
        if len(constraints) > 1:
            all_tags = ", ".join(tags)
            lines.append(f"{len(tags)} constraints hold c at once ({all_tags}): all of them would have to give way.")
        for tag, each in zip(tags, constraints, strict=True):
            if each.price > 0:
                lines.append(
                    f"{tag}: shadow price {each.price:.3g}. Loosened by 0.1, the sum of all c can fall by up to "
                    f"{each.price / 10:.3g}."
                )
        if loosened is None:
            lines.append(
                "No alignment enters them: nothing that is measured while training would loosen them. "
                "A multiplier given in `exponents` moves c along with it."
            )
            return lines
        c, total = _c_of_lp(self._result, name), self._constraints.total
        if c - loosened.c > 1e-9:
            lines.append(
                f"With alignments of 1/2 here alone (updates that do not line up with their input) c would "
                f"be {loosened.c:.4g} in place of {c:.4g}, the sum of all c {loosened.total:.4g} "
                f"in place of {total:.4g}."
            )
        else:
            lines.append(
                f"With alignments of 1/2 here alone c would still be {c:.4g}; the sum of all c "
                f"{loosened.total:.4g} in place of {total:.4g}."
            )
        return lines


def _c(result: Transformed, name: str) -> float:
    return float(result.solution.c.get(name, result.spec[name]["c"])) + 0.0


def _c_of_lp(result: Transformed, name: str) -> float:
    return float(result.solution.solution.c[name])


def _vector_way(node: str, kind: Kind) -> str:
    if isinstance(kind, Layer):
        return "as the bias of" if node in kind.vectors else "in front of"
    if isinstance(kind, Norm) and node in kind.vectors:
        return "as gain or bias of the norm"
    if isinstance(kind, Merge):
        return "by adding it, in"
    return "by multiplying with it, in" if isinstance(kind, Product | Vector) else "in"


def _dim_lines(dims: tuple[DimGrowth, ...], analysis: Outcome) -> list[str]:
    widths = analysis.fixed.widths
    if not dims:
        return ["It is a single number."]
    lines = []
    side_width = max(len(each.side) for each in dims)
    for each in dims:
        side = f" {each.side:<{side_width}}" if side_width else ""
        size = f"{each.size}" if each.base_size is None else f"{each.base_size} -> {each.size}"
        if not each.growth:
            words = "stays"
        elif each.base_size is None or each.base_size == each.size:
            words = f"grows with the width, exponent {each.growth:.3g}"
        else:
            words = f"x {each.size / each.base_size:.3g}, exponent {each.growth:.3g}"
        lines.append(f"dim {each.dim}{side}  {size}: {words}")
    if widths.has_base and widths.width_ratio == 1.0:
        lines.append("Base and model have the same sizes (m = 1): exponents are what a wider model would have.")
    elif widths.has_base:
        lines.append(f"Sizes are those of the base and of the model; exponents are of m = {widths.width_ratio:.4g}.")
    else:
        lines.append("No base was given: which dims grow is read off the graph (layers on both sides), not measured.")
    return lines
