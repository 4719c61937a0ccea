"""Exponents by segment, for a weight whose input is a concatenation of tensors that grow with the width and others.

The columns that meet a tensor which grows are a hidden layer or a readout, the others an embedding-like layer. All are
one parameter with one learning rate m^-c (m, the width ratio). A multiplier m^-a on a segment can be traded for init
and rate: for Adam, (a, b, c) and (a - x, b + x, c + x) train alike, for SGD (a - x, b + x, c + 2 x). So each segment
gets the a at which its own c is that of the growing one, and the b with which its output starts as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.fixed import FixedExponents, ParameterExponents, SegmentExponents
from abcfx.rules import Layer
from abcfx.theory.parametrizations import Alignments


def balanced(
    fixed: FixedExponents,
    alignments: Callable[[LayerDag, Mapping[str, ParameterExponents]], Mapping[str, Alignments]],
) -> FixedExponents:
    """Return the exponents of a model in which all segments of each segmented weight need one learning rate.

    A segment is the columns of a weight that meet one of several concatenated inputs.

    Args:
        fixed: exponents in which each segment has those of a weight of its own.
        alignments: returns how strongly updates line up with inputs at each layer node, given the roles of parameters.
    """
    if not any(each.segments for each in fixed.parameters.values()):
        return fixed
    assumed = alignments(fixed.dag, fixed.parameters)
    parameters = {name: _balanced(fixed, name, each, assumed) for name, each in fixed.parameters.items()}
    return FixedExponents(fixed.dag, fixed.widths, parameters, fixed.families)


def _balanced(
    fixed: FixedExponents, name: str, decided: ParameterExponents, alignments: Mapping[str, Alignments]
) -> ParameterExponents:
    """Return the exponents of one parameter, with the a of each segment chosen so that all need one learning rate.

    A segment is the columns that meet one of several concatenated inputs; its multiplier is m^-a (m, the width ratio).

    Args:
        fixed: exponents in which each segment has those of a weight of its own.
        name: name of the parameter.
        decided: the parameter's exponents in `fixed`.
        alignments: how strongly updates line up with inputs at each layer node.
    """
    if not decided.segments or not decided.learns:
        return decided
    lead = next(iter(decided.a))
    wanted = decided.a[lead] + _room(fixed, name, lead, alignments)
    a, segments = dict(decided.a), dict(decided.segments)
    for node, own in decided.segments.items():
        a[node] = wanted - _room(fixed, name, node, alignments) + 0.0
        segments[node] = SegmentExponents(own.role, own.b + decided.a[node] - a[node] + 0.0)
    return replace(decided, a=a, segments=segments)


def _room(fixed: FixedExponents, name: str, node: str, alignments: Mapping[str, Alignments]) -> float:
    """Return x for which an update at learning rate 1 moves the output of a layer by m^-(a + x) (m, the width ratio).

    m^-a is the layer's multiplier. x is s, where the input is ~ m^-s, less the growth of the sum over fan_in. For SGD,
    whose update is ~ m^-(a + s) itself, the output moves by m^-2(a + x), and x counts half of that growth.

    Args:
        fixed: the exponents, which say how large inputs are.
        name: name of the weight.
        node: the layer node.
        alignments: how strongly updates line up with inputs at each layer node.
    """
    layer = fixed.dag.kind(node)
    assert isinstance(layer, Layer)
    family, e_in, size = fixed.family(name), fixed.growth(*layer.fan_in), fixed.size(layer.inputs[0])
    if fixed.changes(layer.inputs[0]):
        size = min(size, 0.0)  # what is small at init becomes of order 1 in training
    if family.update == "spectral":
        return size - family.spectral_growth(e_in, fixed.growth(*layer.fan_out), layer.stored_growth(fixed))
    grown = alignments[node].alpha * e_in
    return size - (grown / 2 if family.update == "gradient" else grown)
