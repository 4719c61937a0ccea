"""Finds by which power of the width a model's own code scales a layer already, and how its own init scales."""

from __future__ import annotations

import math

import torch

from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import attention_products
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Layer, Number
from abcfx.rules.kinds import Norm, NumberFactor

MADE_UP = 0.15  # how far init and number together may be from what a matrix needs; else they are 1/4 or more apart


def own_factor(dag: LayerDag, growth: WidthGrowth, node: str, role: str, wanted: float, drawn: float | None) -> float:
    """Return x, where the model's own code already scales a layer by a factor m^-x (m, the width ratio).

    Counted are numbers on the weight; on the input of a readout (T5's d^-1/2); on what comes out of a table (sqrt(d))
    or of a readout. Of a hidden layer: those on the input of an inner bottleneck (a router over d), those that a
    norm divides out again, and those that make up for the weight's own init, as d^-1/2 does beside N(0, 1), wherever
    they stand. Its other numbers are part of the architecture.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim and number: 0 if it is the same in a wider model, 1 if it grows with the
            width.
        node: the layer node.
        role: its role.
        wanted: a + b for this role: weight and numbers together are to be ~ m^-(a + b).
        drawn: b of the model's own init m^-b of the weight, where that is known.
    """
    layer = dag.kind(node)
    assert isinstance(layer, Layer)
    on_input = _numbers_on_input(dag, growth, layer, role)
    on_output = numbers_on_output(dag, node if layer.part is None else dag.successors(node)[0])
    numbers = [layer.factor]
    if role == "readout" or (role == "hidden" and not growth.dims(*layer.fan_out)):
        numbers += on_input
    if role in ("embedding", "readout") or dag.is_void(node, through_scales=True):
        numbers += on_output
    if role == "hidden" and growth.dims(*layer.fan_out) and drawn is not None:
        every = [layer.factor, *on_input, *([] if _is_query(dag, node) else on_output)]
        x = -sum(growth.number(number) for number in every)
        if abs(drawn + x - wanted) < min(MADE_UP, abs(drawn - wanted)):
            return x + 0.0
        if abs(drawn - wanted) < MADE_UP:  # right by itself: what it is multiplied by comes on top, wherever it stands
            numbers.remove(layer.factor)
    return -sum(growth.number(number) for number in numbers) + 0.0


def _is_query(dag: LayerDag, node: str) -> bool:
    """Whether numbers alone stand between a layer and products of queries and keys, as the scale of the logits does."""
    after = dag.successors(node)
    while len(after) == 1 and isinstance(dag.kind(after[0]), NumberFactor):
        after = dag.successors(after[0])
    return bool(after) and attention_products(dag).keys() >= set(after)


def own_exponent(growth: WidthGrowth, name: str, parameter: torch.Tensor) -> float | None:
    """Return b, where the model's own init of a parameter is ~ m^-b (m, the width ratio); None without a base.

    It is read off the parameter's values here and in the base.

    Args:
        growth: growth exponents, with the parameters of the base.
        name: name of the parameter.
        parameter: the tensor.
    """
    base = growth.base_parameters.get(name) if growth.has_base and growth.width_ratio != 1.0 else None
    if base is None or base.is_meta or parameter.is_meta:
        return None
    size, base_size = (float(each.detach().double().square().mean()) for each in (parameter, base))
    return math.log(base_size / size) / (2 * math.log(growth.width_ratio)) if size and base_size else None


def _numbers_on_input(dag: LayerDag, growth: WidthGrowth, layer: Layer, role: str) -> list[Number]:
    """Return the numbers by which the model multiplies the input of this layer alone.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        layer: the layer.
        role: its role; for a hidden layer, numbers that other layers see as well do not count.
    """
    found, before = [], layer.inputs[0]
    while before is not None and isinstance(kind := dag.kind(before), NumberFactor):
        if role == "hidden" and len(dag.successors(before)) > 1:
            break
        found.append(kind.factor)
        before = kind.input
    if before is None:
        return found
    source = dag.kind(before)
    makes_up_for_norm = isinstance(source, Norm) and growth.dims(*source.summed) > 0  # entries ~ 1/sqrt(d)
    is_table = isinstance(source, Layer) and not growth.dims(*source.fan_in)
    belongs_to_table = is_table and len(dag.successors(before)) == 1
    return [] if makes_up_for_norm or belongs_to_table else found


def numbers_on_output(dag: LayerDag, node: str) -> list[Number]:
    """Return the numbers by which the model multiplies a DAG node's output before anything else, even tanh, uses it."""
    found: list[Number] = []
    while node not in dag.outputs and not dag.node(node).is_bent:
        after = dag.successors(node)
        if len(after) != 1 or not isinstance(kind := dag.kind(after[0]), NumberFactor):
            break
        found.append(kind.factor)
        node = after[0]
    return found
