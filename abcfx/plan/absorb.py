"""Moves multipliers into init, rate, eps and weight decay, along the symmetry that leaves every trajectory as it is.

One parameter: (a, b, c) -> (0, b + a, c + k a), with k = 1 for Adam and its kin, 2 for SGD, 0 where updates follow the
weight; eps ~ m^-g with g - a; weight decay so that the step that it takes stays the same. A parameter with several uses
gives its first multiplier away so; what is left at a readout goes into gain and bias of the norm before it. A factor on
attention logits goes into the query's weight and bias, or into gain and bias of its norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.assign import FixedExponents, ParameterExponents
from abcfx.exponents.attention import query_targets
from abcfx.exponents.dag_program import SolvedDag
from abcfx.rules import Layer
from abcfx.theory.optimizers import OptimizerFamily


@dataclass(frozen=True)
class AppliedExponents:
    """Exponents of one parameter as they are applied: rate m^-c, eps m^-g, weight decay m^decay."""

    decided: ParameterExponents
    c: float
    g: float
    decay: float

    def moved(self, a: float, family: OptimizerFamily, left: dict[str, float]) -> AppliedExponents:
        """With a multiplier m^-a moved into the parameter, and multipliers `left` at its uses."""
        decided = replace(self.decided, a=left, b=self.decided.b + a)
        return AppliedExponents(decided, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


def solved_exponents(setting: FixedExponents, solved: SolvedDag, decay_mode: str) -> dict[str, AppliedExponents]:
    """The exponents as they were solved, with the weight decay that `decay_mode` asks for (see `transform`)."""
    gauges = {}
    for name, decided in setting.parameters.items():
        family, c = setting.families[name], solved.c.get(name, 0.0)
        # "coupled" means one number for all where no multiplier is left
        decay = -family.decay_shift(next(iter(decided.a.values()), 0.0))
        if decay_mode == "independent":
            decay = family.independent_decay(c, decided.b)
        gauges[name] = AppliedExponents(decided, c, solved.g.get(name, 0.0), decay)
    return gauges


def absorbed_exponents(setting: FixedExponents, solved: SolvedDag, decay_mode: str) -> dict[str, AppliedExponents]:
    """The same trajectories with no multiplier, except where a parameter is used with two and no norm can take one."""
    gauges = solved_exponents(setting, solved, decay_mode)
    for name, gauge in gauges.items():
        if gauge.decided.normalised:
            continue  # a factor on it would be divided out again
        a = next(iter(gauge.decided.a.values()), 0.0)
        left = {node: other - a for node, other in gauge.decided.a.items()}
        gauges[name] = gauge.moved(a, setting.families[name], left)
    for node, a in setting.attention.items():
        for name in query_targets(setting.dag, node):
            gauges[name] = gauges[name].moved(a, setting.families[name], gauges[name].decided.a)
    for name, gauge in list(gauges.items()):
        for node, a in gauge.decided.a.items():
            vectors = _vectors_before(setting.dag, node) if a else ()
            for vector in vectors:
                gauges[vector] = gauges[vector].moved(a, setting.families[vector], {})
            if vectors:
                rest = {**gauges[name].decided.a, node: 0.0}
                gauges[name] = replace(gauges[name], decided=replace(gauges[name].decided, a=rest))
    return gauges


def attention_left(setting: FixedExponents) -> dict[str, float]:
    """Factors on attention logits that no parameter can take: query and key come out of one fused layer."""
    return {node: a for node, a in setting.attention.items() if not query_targets(setting.dag, node)}


def _vectors_before(dag: LayerDag, node: str) -> tuple[str, ...]:
    """Gain and bias of the norm whose output goes to this layer and nowhere else; () where there is no such norm."""
    (before,) = dag.kind(node).inputs
    found = () if before is None else dag.takers(before)
    return found if not any(isinstance(dag.kind(n), Layer) for name in found for n in dag.uses()[name]) else ()
