"""Finds narrow layers, which make few outputs of many inputs inside a model, and says by how much they start smaller.

What the layers before a narrow layer learn comes back through its few rows, so that the changes of its input line up
with these rows: W dx adds up as if aligned. The spectral condition (Yang, Simon, Bernstein 2023, arXiv 2310.17813)
keeps it: an init smaller by (min(1, fan_out / fan_in))^1/2, as it is at a readout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.exponents.roles import RoleReason
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Layer
from abcfx.rules.extents import DimPart
from abcfx.rules.kinds import Norm, Unary

TOLERANCE = 1e-6
_INNER = (RoleReason.BOTTLENECK, RoleReason.BOTH_SIDES)


def narrowing_of(
    dag: LayerDag, growth: WidthGrowth, parameters: Mapping[str, torch.Tensor], node: str, reason: RoleReason
) -> float:
    """Return e such that fan_out / fan_in, at most 1, of a layer shrinks like m^-e (m, the width ratio).

    It is 0 where nothing lines up with the rows of the layer: at the borders of the model, where nothing before it
    learns, and in an adapter, whose output is multiplied by zeros at first (LoRA's A: with the init of a hidden layer
    it keeps its first steps at any width, as Hayou et al. 2024, arXiv 2406.08447, advise). It is 0 also where a norm
    divides the init out again, perhaps behind further layers: it would make the changes larger as well.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        parameters: the model's parameters by name.
        node: the layer node.
        reason: why the layer has its role.
    """
    layer = dag.kind(node)
    assert isinstance(layer, Layer)
    if reason not in _INNER or dag.is_void(node, through_scales=True, through_layers=True):
        return 0.0
    narrowing = growth.narrowing(layer.fan_in, layer.fan_out)
    if not narrowing or not _input_learns(dag, parameters, layer) or _meets_zeros(dag, parameters, node):
        return 0.0
    return narrowing


def narrow_rows(
    dag: LayerDag, growth: WidthGrowth, parameters: Mapping[str, torch.Tensor], node: str, reason: RoleReason
) -> dict[DimPart, float]:
    """Return the rows of a weight that are narrow layers beside others that grow, each with e as `narrowing_of` does.

    So are fused queries, keys and values of which only the queries grow. There are none where a norm reads the layer,
    since it may be these rows that it divides by their size.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        parameters: the model's parameters by name.
        node: the layer node.
        reason: why the layer has its role.
    """
    layer = dag.kind(node)
    assert isinstance(layer, Layer)
    if reason not in _INNER or len(layer.fan_out) != 1 or layer.part is not None:
        return {}
    parts = [part for part in growth.row_parts(layer.fan_out[0]) if not part.grows]
    is_normed = any(isinstance(dag.kind(n), Norm) for n in dag.successors(node))
    if not parts or is_normed or not _input_learns(dag, parameters, layer) or _meets_zeros(dag, parameters, node):
        return {}
    found = {part: growth.narrowing(layer.fan_in, (part,)) for part in parts}
    return {part: narrowing for part, narrowing in found.items() if narrowing}


def _input_learns(dag: LayerDag, parameters: Mapping[str, torch.Tensor], layer: Layer) -> bool:
    """Whether training changes the input of a layer: a parameter that it is computed from requires a gradient."""
    (source,) = layer.inputs
    before = set() if source is None else {source, *dag.ancestors(source)}
    names = {name for n in before if (name := dag.node(n).parameter) is not None}
    return any(parameters[name].requires_grad for name in names if name in parameters)


def _meets_zeros(dag: LayerDag, parameters: Mapping[str, torch.Tensor], node: str) -> bool:
    """Whether all that reads a DAG node's output, perhaps behind functions of it, is weights that start at zero."""
    readers = dag.successors(node)
    if not readers or node in dag.outputs:
        return False

    def is_zero(n: str) -> bool:
        """Whether a reader is a layer whose weight is zero, or a function whose readers are such layers."""
        kind = dag.kind(n)
        if isinstance(kind, Layer):
            weight = parameters.get(kind.parameter)
            return weight is not None and not weight.is_meta and not bool(weight.any())
        return isinstance(kind, Unary) and _meets_zeros(dag, parameters, n)

    return all(map(is_zero, readers))


def narrow_notes(fixed: FixedExponents) -> tuple[str, ...]:
    """Return a note for the report on narrow layers whose init a norm makes void; none if there are no such layers."""
    narrow = [node for node, layer in fixed.dag.layers() if _is_narrow_before_norm(fixed, node, layer)]
    if not narrow:
        return ()
    return (
        f"{', '.join(narrow[:3])}{f' and {len(narrow) - 3} more' * (len(narrow) > 3)}: makes few outputs of many "
        f"inputs, and only a norm reads what comes of them. What changes before such a layer lines up with its few "
        f"rows, so that changes of its output may grow with the width, up to m^0.5, and no init prevents it: the norm "
        f"divides it out. A norm in front of the layer instead of behind it does.",
    )


def _is_narrow_before_norm(fixed: FixedExponents, node: str, layer: Layer) -> bool:
    """Whether an inner layer has few outputs however many inputs it has, and a norm makes its init void."""
    is_inner = fixed.parameters[layer.parameter].why.reason in _INNER
    is_void = fixed.dag.is_void(node, through_scales=True, through_layers=True)
    if not is_inner or not is_void or not fixed.changes(layer.inputs[0]):
        return False
    return fixed.widths.narrowing(layer.fan_in, layer.fan_out) > TOLERANCE
