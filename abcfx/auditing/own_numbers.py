"""Which of the numbers in a model's forward belong to which weight: these take the place of a multiplier.

A number that stands between two layers may be meant for the one before it or for the one behind. It is given to that
layer for which the model's own draws are then nearest to what they should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import attention_products
from abcfx.exponents.fixed import FixedExponents, ParameterExponents
from abcfx.rules import Layer
from abcfx.rules.kinds import NumberFactor


class _Chain(NamedTuple):
    """Numbers that a model multiplies by between two layers, with nothing else there that reads them.

    Attributes:
        before: node of the layer whose output they multiply.
        after: node of the layer whose input they multiply.
        exponents: each number is ~ m^-exponent (m, the width ratio), in the order in which the model runs.
    """

    before: str
    after: str
    exponents: tuple[float, ...]


def own_multipliers(fixed: FixedExponents, drawn: Mapping[str, float]) -> dict[str, float]:
    """Return for each parameter x, where numbers ~ m^-x in the model's forward are its multiplier (m, the width ratio).

    Args:
        fixed: roles of parameters, and planned exponents.
        drawn: exponent b of the model's own init m^-b, by parameter.
    """
    chains = _chains(fixed)
    found = {name: _beside(fixed, each, chains) for name, each in fixed.parameters.items()}
    undecided = {chain.before: chain for chain in chains}
    for chain in chains:
        del undecided[chain.before]
        later = undecided.get(chain.after)
        before, after = (fixed.dag.node(node).parameter or "" for node in (chain.before, chain.after))
        usual = 0 if fixed.parameters[after].role == "readout" else len(chain.exponents)
        cuts = sorted(range(len(chain.exponents) + 1), key=lambda cut: abs(cut - usual))
        cut = min((_distance(fixed, drawn, found, (chain, later), each), i, each) for i, each in enumerate(cuts))[2]
        found[before] += sum(chain.exponents[:cut])
        found[after] += sum(chain.exponents[cut:])
    return found


def _distance(
    fixed: FixedExponents,
    drawn: Mapping[str, float],
    found: Mapping[str, float],
    chains: tuple[_Chain, _Chain | None],
    cut: int,
) -> float:
    """Return how far the draws of two layers are from what they should be, if numbers between them are split so.

    Args:
        fixed: roles of parameters, and planned exponents.
        drawn: exponent b of the model's own init m^-b, by parameter.
        found: the exponents of the multipliers that each parameter has already.
        chains: the numbers between the layers, and those behind the second layer that are still to be split.
        cut: how many of the numbers belong to the first layer.
    """
    chain, later = chains
    before, after = (fixed.dag.node(node).parameter or "" for node in (chain.before, chain.after))
    ahead, behind = sum(chain.exponents[:cut]), sum(chain.exponents[cut:])
    more = [0.0] if later is None else [sum(later.exponents[:k]) for k in range(len(later.exponents) + 1)]
    first = abs(_wanted(fixed, before, found[before] + ahead) - drawn.get(before, 0.0))
    second = min(abs(_wanted(fixed, after, found[after] + behind + x) - drawn.get(after, 0.0)) for x in more)
    return round(first + second, 6)


def _wanted(fixed: FixedExponents, name: str, own: float) -> float:
    """Return the b that a parameter should have if the model's forward multiplies it by m^-own."""
    decided = fixed.parameters[name]
    return decided.b + next(iter(decided.a.values()), 0.0) + decided.own - own


def _chains(fixed: FixedExponents) -> list[_Chain]:
    """Return the numbers between two layers that are each used once, in the order in which the model runs."""
    dag, found = fixed.dag, []
    for node, layer in dag.layers():
        exponents, end = _numbers_after(fixed, node)
        readers = dag.successors(end)
        if not exponents or len(readers) != 1 or len(fixed.parameters[layer.parameter].a) != 1:
            continue
        reader = dag.kind(readers[0])
        if isinstance(reader, Layer) and reader.inputs[0] == end and len(fixed.parameters[reader.parameter].a) == 1:
            found.append(_Chain(node, readers[0], exponents))
    return found


def _beside(fixed: FixedExponents, decided: ParameterExponents, chains: list[_Chain]) -> float:
    """Return x for the numbers ~ m^-x that belong to one parameter alone (m, the width ratio).

    Those between two layers are left out. Numbers on queries and keys belong to the attention.

    Args:
        fixed: roles of parameters, and planned exponents.
        decided: the exponents of the parameter.
        chains: the numbers between two layers.
    """
    nodes = [node for node in decided.a if isinstance(fixed.dag.kind(node), Layer)]
    if len(nodes) != 1 or len(decided.a) != 1:
        return decided.own
    (node,) = nodes
    layer = fixed.dag.kind(node)
    assert isinstance(layer, Layer)
    behind = next((chain for chain in chains if chain.before == node), None)
    ahead = next((chain for chain in chains if chain.after == node), None)
    if decided.role != "hidden" or decided.void or decided.normalised:
        return decided.own - _counted(fixed, behind, ahead)
    total = -fixed.number(layer.factor)
    if ahead is None:
        total += _before(fixed, layer)
    exponents, end = _numbers_after(fixed, node)
    if behind is None and not any(end in fixed.dag.kind(n).inputs for n in attention_products(fixed.dag)):
        total += sum(exponents)
    return total + 0.0


def _counted(fixed: FixedExponents, behind: _Chain | None, ahead: _Chain | None) -> float:
    """Return what a plan counts of the numbers between two layers as the own factor of a layer that is not hidden.

    Args:
        fixed: roles of parameters, and planned exponents.
        behind: the numbers on the output of the layer, if there are any.
        ahead: those on its input.
    """
    total = 0.0 if behind is None else sum(behind.exponents)
    if ahead is not None:
        layer, source = fixed.dag.kind(ahead.after), fixed.dag.kind(ahead.before)
        assert isinstance(layer, Layer)
        assert isinstance(source, Layer)
        is_table = not fixed.growth(*source.fan_in)
        role = fixed.parameters[layer.parameter].role
        total += sum(ahead.exponents) if role == "readout" and not is_table else 0.0
    return total


def _numbers_after(fixed: FixedExponents, node: str) -> tuple[tuple[float, ...], str]:
    """Return x of each number ~ m^-x that multiplies a layer's output before anything else, and the last such node."""
    found: list[float] = []
    while (following := _only_number_after(fixed.dag, node)) is not None:
        found.append(_shift(fixed, following))
        node = following
    return tuple(found), node


def _before(fixed: FixedExponents, layer: Layer) -> float:
    """Return x, where numbers ~ m^-x multiply the input of this layer, and nothing else reads them."""
    dag, total, before = fixed.dag, 0.0, layer.inputs[0]
    while before is not None and isinstance(dag.kind(before), NumberFactor) and len(dag.successors(before)) == 1:
        total += _shift(fixed, before)
        before = dag.kind(before).inputs[0]
    return total


def _only_number_after(dag: LayerDag, node: str) -> str | None:
    """Return the node that multiplies a node's output by a number, if nothing else reads the output; else None."""
    followers = dag.successors(node)
    if node in dag.outputs or dag.node(node).is_bent or len(followers) != 1:
        return None
    return followers[0] if isinstance(dag.kind(followers[0]), NumberFactor) else None


def _shift(fixed: FixedExponents, node: str) -> float:
    """Return x for a node that multiplies by a number ~ m^-x (m, the width ratio)."""
    kind = fixed.dag.kind(node)
    assert isinstance(kind, NumberFactor)
    return kind.shift(fixed)
