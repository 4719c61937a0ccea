"""`AuditState`: exponents of a model as they are, or as they are to be, with what they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from abcfx.exponents.fixed import FixedExponents, ParameterExponents
from abcfx.exponents.recursion import Course, follow
from abcfx.theory.parametrizations import Alignments


@dataclass(frozen=True)
class AuditState:
    """The exponents of width of a whole model: init, rates and multipliers; and what they lead to.

    m is the width ratio, width of the larger model over width of the smaller.

    Attributes:
        frame: the layer DAG, growth of dims, roles and optimizers; its inits and multipliers do not count.
        alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
        b: exponent of the init m^-b, by parameter.
        c: exponent of the learning rate m^-c, by parameter that learns.
        a: exponent of a multiplier m^-a beside those in the model's own forward, by node of a layer or of attention.
    """

    frame: FixedExponents = field(repr=False)
    alignment: Mapping[str, Alignments] = field(repr=False)
    b: Mapping[str, float]
    c: Mapping[str, float]
    a: Mapping[str, float]

    @cached_property
    def fixed(self) -> FixedExponents:
        """The exponents as the nodes of the layer DAG ask for them."""
        parameters = {name: self._of(name, each) for name, each in self.frame.parameters.items()}
        attention = {node: a for node, a in self.a.items() if self.frame.dag.node(node).parameter is None}
        return FixedExponents(self.frame.dag, self.frame.widths, parameters, self.frame.families, attention=attention)

    def _of(self, name: str, decided: ParameterExponents) -> ParameterExponents:
        """Return the exponents of one parameter in this state."""
        a = {node: self.a.get(node, 0.0) for node in decided.a}
        learns = decided.learns and name in self.c
        return replace(decided, a=a, b=self.b.get(name, decided.b), c=None, segments={}, learns=learns)

    @cached_property
    def course(self) -> Course:
        """What these exponents lead to in training."""
        return follow(self.fixed, self.c, self.alignment)

    @cached_property
    def slack(self) -> dict[str, float]:
        """By how much the c of each parameter could be smaller, all else as it is."""
        return self.course.slack()

    def with_parameter(self, name: str, other: AuditState) -> AuditState:
        """Return this state with init, rate and multipliers of one parameter, or of attention, from another state.

        Args:
            name: name of the parameter, or of the node of an attention product.
            other: the state to take them from.
        """
        nodes = list(self.frame.parameters[name].a) if name in self.frame.parameters else [name]
        a = {**self.a, **{node: other.a.get(node, 0.0) for node in nodes}}
        b = {**self.b, name: other.b[name]} if name in other.b else self.b
        c = {**self.c, name: other.c[name]} if name in other.c and name in self.c else self.c
        return AuditState(self.frame, self.alignment, b, c, a)
