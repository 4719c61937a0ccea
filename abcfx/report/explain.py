"""Explanations of single parameters in words: role, dims that grow, what keeps c from being smaller, what follows."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import assign_exponents
from abcfx.exponents.fixed import ParameterExponents
from abcfx.exponents.roles import RoleReason
from abcfx.outcome import Outcome
from abcfx.report.consequences import consequences
from abcfx.report.constraints import Constraint, Constraints, Loosened
from abcfx.report.dim_growth import dim_lines, dims_of
from abcfx.report.explanation import Explanation, Line, Paragraph
from abcfx.report.names import tied_names
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Kind, Merge, Norm, Product
from abcfx.support.arguments import wrong
from abcfx.support.location import location

USES_SHOWN = 3
MEANING = {
    "embedding": "It looks up or sums over a number of terms that does not grow with the width.",
    "hidden": "It sums over a number of terms that grows with the width.",
    "readout": "It sums over a number of terms that grows with the width, and its output is no wider than in the base.",
    "vector": "It acts entry by entry, so it sums over nothing.",
    "scalar": "Nothing about it changes with the width.",
    "plain": "It is left as the model has it: its own init, the base learning rate, no multiplier.",
}
MEANING_OF_TIED = "As a table it sums over nothing that grows with the width; as a readout it does."


class Explainer:
    """A writer of explanations of single parameters; the linear program's rows are written once for all of them.

    Args:
        outcome: everything that one transform found.
    """

    def __init__(self, outcome: Outcome) -> None:
        """Write the rows (inequalities) of the linear program, and look up where the model uses each parameter."""
        self._outcome, self._dag = outcome, outcome.dag
        self._constraints = Constraints(outcome.fixed, outcome.alignments, outcome.solution)
        self._uses = self._dag.uses()
        self._tied = {names[0]: tuple(names[1:]) for names in tied_names(outcome.captured.model)}
        self._group_of = {name: i for i, group in enumerate(outcome.param_groups) for name in group["param_names"]}

    def explain(self, name: str) -> Explanation:
        """Explain one parameter in words: role ("hidden", ...), growth, what limits its learning rate, what follows.

        Args:
            name: name of the parameter, a name tied to it, or the module whose weight it is ("blocks.3.attn.qkv").

        Raises:
            InvalidInputError: there is none of that name; the message has those that are close.
        """
        name = self._name_in_plan(name)
        plan, is_given = self._outcome.plan[name], self._outcome.fixed.parameters[name].c is not None
        dims = dims_of(self._outcome, name)
        constraints = () if is_given else tuple(self._constraints.holding(name))
        loosened = None if is_given else self._constraints.loosened(name)
        title = f"What keeps c = {self._c(name):.4g} from being smaller" if plan.trainable else "No learning rate"
        paragraphs = [
            Paragraph.of(f"Role: {plan.role}", self._role_lines(name)),
            Paragraph.of("How it grows", dim_lines(self._outcome, dims)),
            Paragraph.of(title, self._binding_lines(name, constraints)),
            Paragraph.of("What would allow a larger rate", self._loosening_lines(name, constraints, loosened)),
            Paragraph.of("What follows", consequences(self._outcome, name, self._group_of.get(name))),
        ]
        return Explanation(
            name=name,
            aliases=self._tied.get(name, ()),
            role=plan.role,
            why=str(plan.why),
            dims=dims,
            constraints=constraints,
            loosened=loosened,
            row=plan.row(),
            paragraphs=tuple(paragraph for paragraph in paragraphs if paragraph.lines),
        )

    def _name_in_plan(self, name: str) -> str:
        """Return the name under which a parameter stands in the plan, for a tied name or the module it belongs to.

        Raises:
            InvalidInputError: there is no such parameter; the message has names that are close.
        """
        known = {alias: first for first, aliases in self._tied.items() for alias in aliases}
        known |= {each: each for each in self._outcome.plan}
        short = {each.removesuffix(".weight"): first for each, first in known.items()}
        if not isinstance(name, str):
            raise wrong("explain", name, "the name of a parameter", f"result.explain({next(iter(known))!r})")
        found = known.get(name, short.get(name))
        if found is None:
            within = [each for each in known if each.startswith(f"{name}.")]
            close = within[:3] or get_close_matches(name, list(known), n=3, cutoff=0.3) or list(known)[:3]
            raise InvalidInputError(
                f"explain: the model has no parameter {name!r}.\n  Names that are close: {', '.join(close)}.\n"
                f"  To fix: result.explain({close[0]!r})"
            )
        return found

    def _c(self, name: str) -> float:
        """Return c of a parameter (rate m^-c; m, the width ratio) with its multiplier still apart from the weight."""
        return self._outcome.solution.c.get(name, self._outcome.plan[name].c) + 0.0

    # -- role

    def _role_lines(self, name: str) -> list[str]:
        """Write the lines about a parameter's role ("hidden", ...): the reason, other names, where it is used."""
        plan, decided = self._outcome.plan[name], self._outcome.fixed.parameters[name]
        is_both = plan.role == "embedding" and decided.e_in > 0
        lines = [f"The role is {plan.role}: {plan.why}. {MEANING_OF_TIED if is_both else MEANING[plan.role]}"]
        if plan.why.reason is RoleReason.GIVEN:
            own = self._role_from_graph(name)
            lines.append(f"The graph alone says {own.role}: {own.why}.")
        if name in self._tied:
            lines.append(f"It is one parameter with other names: {', '.join(self._tied[name])}.")
        nodes = self._uses.get(name, [])
        lines += [f"Used {self._use(node)}." for node in nodes[:USES_SHOWN]]
        if len(nodes) > USES_SHOWN:
            lines.append(f"Used {len(nodes) - USES_SHOWN} times more.")
        if not plan.trainable:
            lines.append("Frozen (requires_grad is False): it is in no optimizer group and does not change.")
        return lines

    def _role_from_graph(self, name: str) -> ParameterExponents:
        """Return the role ("hidden", ...) and exponents of a parameter by the graph alone, without the user's own."""
        fixed, table = self._outcome.fixed, self._outcome.header.parametrization
        parameter = self._outcome.captured.model.get_parameter(name)
        return assign_exponents(self._dag, fixed.widths, {name: parameter}, table)[name]

    def _use(self, node: str) -> str:
        """Return in words how and where a parameter is used at a node of the layer DAG."""
        kind, place = self._dag.kind(node), location(self._dag.node(node).fx_node)
        if isinstance(kind, Layer):
            pieces = f"; its output is cut into {kind.pieces}, so it counts {kind.pieces} times in the sum of all c"
            columns = "" if kind.part is None else f" by its columns {kind.part}"
            return f"as the weight of a layer{columns}, at {place}{pieces if kind.pieces > 1 else ''}"
        ways = [(after, self._dag.kind(after)) for after in self._dag.successors(node)]
        shown = [f"{_way_of_use(node, other)} {after}" for after, other in ways[:USES_SHOWN]]
        return f"{', '.join(shown) or 'as an output'}, at {place}"

    # -- constraints

    def _binding_lines(self, name: str, constraints: tuple[Constraint, ...]) -> Sequence[str | Line]:
        """Write the lines about what keeps a parameter's c (rate m^-c) from being smaller: constraints as formulas.

        m is the width ratio.
        """
        plan = self._outcome.plan[name]
        if self._outcome.fixed.parameters[name].c is not None:
            r = "" if plan.r is None else f" With it, training changes the output by about m^-r with r = {plan.r:.4g}."
            return [f"You gave c in `exponents`; the other parameters are solved around it.{r}"]
        if not plan.trainable:
            return ["It does not learn, so no constraint is about it."]
        if plan.role == "plain":
            return ["It takes no part in the linear program: plain parameters keep the base learning rate."]
        if name not in self._outcome.solution.solution.c:
            return self._rule_lines(name)
        if not constraints:
            return ["Nothing does: it reaches no output of the model, so c is kept within fixed bounds."]
        lines: list[str | Line] = []
        for each in constraints:
            lines += [f"{each.tag}: {each.words}.", Line(each.formula, is_formula=True)]
            because = [f"{'where' if i == 0 else 'and'} {reason}" for i, reason in enumerate(each.because)]
            lines += [Line(reason, is_formula=True) for reason in because]
        return lines

    def _rule_lines(self, name: str) -> list[str]:
        """Write the lines about the rate of a bias, gain or other vector, which no linear program solves for."""
        family, changes = self._outcome.fixed.families[name], self._outcome.solution.r
        lines = [
            "It is not part of the linear program. By rule, its rate is the largest at which the tensor that it acts "
            "on stays as stable as the layers after it need."
        ]
        nodes = [after for node in self._uses[name] for after in self._dag.successors(node)]
        shown = [f"r({node}) = {changes[node]:.4g}" for node in nodes[:USES_SHOWN] if node in changes]
        if shown:
            lines.append(f"The other parameters change that tensor by about m^-r: {', '.join(shown)}.")
        if family.update == "gradient" and self._c(name):
            lines.append(f"{family.name} moves it in proportion to its gradient, which is ~ m^-g: c makes up for that.")
        return lines

    def _loosening_lines(self, name: str, constraints: tuple[Constraint, ...], loosened: Loosened | None) -> list[str]:
        """Write the lines about what would have to change for a parameter to get a larger learning rate.

        Args:
            name: the parameter.
            constraints: the constraints that keep its c from being smaller.
            loosened: the solution with alignments of 1/2 at this parameter; None if it has no alignments.
        """
        if not constraints:
            return []
        several = len({each.node for each in constraints}) > 1
        tags = [f"{each.tag} of {each.node}" if several else each.tag for each in constraints]
        lines = []
        if len(tags) > 1:
            lines.append(
                f"{len(tags)} constraints hold at once ({', '.join(tags)}): all of them would have to be relaxed."
            )
        for tag, each in zip(tags, constraints, strict=True):
            if each.price > 0:
                lines.append(
                    f"{tag}: its shadow price is {each.price:.3g}. If it were relaxed by 0.1, the sum of all c could "
                    f"fall by up to {each.price / 10:.3g}."
                )
        if loosened is None:
            lines.append(
                "No alignment appears in these constraints, so measured alignments would not change c. A multiplier a "
                "that you give in `exponents` would: c moves along with it."
            )
            return lines
        c = self._outcome.solution.solution.c[name]
        own = f"be {loosened.c:.4g} in place of {c:.4g}" if c - loosened.c > 1e-9 else f"still be {c:.4g}"
        lines.append(
            f"With alignments of 1/2 at this parameter alone (updates that do not line up with inputs), c would {own}; "
            f"the sum of all c would be {loosened.total:.4g} in place of {self._constraints.total:.4g}."
        )
        return lines


def _way_of_use(node: str, kind: Kind) -> str:
    """Return in words how a DAG node uses a vector of parameters that it reads: as a bias, a gain, a factor."""
    if isinstance(kind, Layer):
        return "as the bias of" if node in kind.vectors else "as the input of"
    if isinstance(kind, Norm) and node in kind.vectors:
        return "as gain or bias of the norm"
    if isinstance(kind, Merge):
        return "by adding it, in"
    return "by multiplying with it, in" if isinstance(kind, Product | Vector) else "in"
