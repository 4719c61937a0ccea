"""Moves multipliers into init, rate, eps and weight decay, by the symmetry that leaves every trajectory as it is.

For one parameter (a, b, c) becomes (0, b + a, c + k a), with k = 1 for Adam and its kin, 2 for SGD, 0 where updates
follow the size of the weight. eps ~ m^-g becomes m^-(g - a), and weight decay moves so that the step it takes stays the
same. A parameter with several uses absorbs the multiplier of its first use; what is then left at a readout goes into
gain and bias of the norm before it. A factor on attention logits goes into the query's weight and bias, or into gain
and bias of the query's norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import absorbing_parameters, query_targets
from abcfx.exponents.dag_program import SolvedDag
from abcfx.exponents.fixed import FixedExponents, ParameterExponents
from abcfx.rules import Layer
from abcfx.theory.optimizers import OptimizerFamily


@dataclass(frozen=True)
class AppliedExponents:
    """The exponents of one parameter as they are applied to the model; all are powers of the width ratio m.

    Attributes:
        decided: the exponents a of its multipliers m^-a, by use, and b of its init m^-b.
        c: exponent of the learning rate, m^-c.
        g: exponent of its gradient, m^-g, which eps follows.
        decay: exponent of weight decay, m^decay.
    """

    decided: ParameterExponents
    c: float
    g: float
    decay: float

    def moved(self, a: float, family: OptimizerFamily, left: dict[str, float]) -> AppliedExponents:
        """Return the exponents after a multiplier m^-a (m, the width ratio) has moved into the parameter.

        Args:
            a: exponent of the multiplier.
            family: the optimizer, which decides how its learning rate has to follow.
            left: exponents of the multipliers that then remain, by use.
        """
        segments = {node: each._replace(b=each.b + a) for node, each in self.decided.segments.items()}
        decided = replace(self.decided, a=left, b=self.decided.b + a, segments=segments)
        return AppliedExponents(decided, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


def solved_exponents(fixed: FixedExponents, solved: SolvedDag, decay_mode: str) -> dict[str, AppliedExponents]:
    """Return the exponents of every parameter as the linear program found them, with multipliers left in forward.

    Args:
        fixed: the role of each parameter, and its exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b).
        solved: exponents c (learning rate) and of gradients.
        decay_mode: how weight decay follows width: "independent", "coupled" or "fixed".
    """
    found = {}
    for name, decided in fixed.parameters.items():
        family, c = fixed.families[name], solved.c.get(name, 0.0)
        # "coupled" means one number for all where no multiplier is left
        decay = -family.decay_shift(next(iter(decided.a.values()), 0.0))
        if decay_mode == "independent":
            decay = family.independent_decay(c, decided.b)
        found[name] = AppliedExponents(decided, c, solved.g.get(name, 0.0), decay)
    return found


def absorbed_exponents(fixed: FixedExponents, solved: SolvedDag, decay_mode: str) -> dict[str, AppliedExponents]:
    """Return the exponents of every parameter after its multiplier has moved into init, learning rate, eps and decay.

    No op is then added to the model. A multiplier stays where a parameter needs two different ones and no norm precedes
    it.

    Args:
        fixed: the role of each parameter, and its exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b).
        solved: exponents c (learning rate) and of gradients.
        decay_mode: how weight decay follows width: "independent", "coupled" or "fixed".
    """
    found = solved_exponents(fixed, solved, decay_mode)
    for name, each in found.items():
        if each.decided.normalised or _acts_as_vector(fixed.dag, name):
            continue  # a factor on it would be divided out again, or change what else reads it
        a = next(iter(each.decided.a.values()), 0.0)
        left = {node: other - a for node, other in each.decided.a.items()}
        found[name] = each.moved(a, fixed.families[name], left)
    for node, a in fixed.attention.items():
        for name in _taking_queries(fixed, node):
            found[name] = found[name].moved(a, fixed.families[name], found[name].decided.a)
    for name, each in list(found.items()):
        for node, a in each.decided.a.items():
            vectors = (
                fixed.trained(_vectors_before(fixed.dag, node))
                if a and fixed.dag.node(node).weight is None and not each.decided.segments
                else ()
            )
            for vector in vectors:
                found[vector] = found[vector].moved(a, fixed.families[vector], {})
            if vectors:
                decided = found[name].decided
                found[name] = replace(found[name], decided=replace(decided, a={**decided.a, node: 0.0}))
    return found


def attention_left(fixed: FixedExponents) -> dict[str, float]:
    """Return the factors on attention logits that no parameter can take, by the product of query and key.

    That is the case where query and key come out of one fused layer, or out of a frozen one.
    """
    return {node: a for node, a in fixed.attention.items() if not _taking_queries(fixed, node)}


def _taking_queries(fixed: FixedExponents, node: str) -> tuple[str, ...]:
    """Return the parameters into which the factor on attention logits goes: those that make the queries, or the keys.

    There are none if one of them is frozen.

    Args:
        fixed: has the layer DAG and the roles of parameters.
        node: the product of query and key.
    """
    names = fixed.trained(query_targets(fixed.dag, node))
    return () if any(fixed.parameters[name].role == "plain" for name in names) else names


def _acts_as_vector(dag: LayerDag, parameter: str) -> bool:
    """Whether a weight is somewhere in the model also added or multiplied entry by entry, or read by a function."""
    return any(not isinstance(dag.kind(node), Layer) for node in dag.uses().get(parameter, ()))


def _vectors_before(dag: LayerDag, node: str) -> tuple[str, ...]:
    """Return gain and bias of the norm whose output goes to this layer alone; () if there is no such norm."""
    (before,) = dag.kind(node).inputs
    found = () if before is None else absorbing_parameters(dag, before)
    return found if not any(isinstance(dag.kind(n), Layer) for name in found for n in dag.uses()[name]) else ()
