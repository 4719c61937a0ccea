"""The growth exponent of every dim without a base: a dim grows if another layer stands on that side of its weight."""

from __future__ import annotations

from collections.abc import Mapping

from abcfx.dag.generators import generators
from abcfx.dag.layer_dag import LayerDag
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Layer, Vector
from abcfx.rules.extents import Dim, InGraph, ParameterDim


class StructuralGrowth(WidthGrowth):
    """Growth exponents read off the structure of a layer DAG (graph of layers), where no smaller model is given.

    A dim of a weight grows (exponent 1) if another layer stands on that side of it. The few outputs of a layer that
    makes the weights by which residual streams are mixed do not grow, although layers follow.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        shapes: the shape of each parameter.
        base: the growth measured with a base of the same sizes, if there is one. The exponents are then for the report
            only, since the width ratio is 1.
    """

    def __init__(
        self,
        dag: LayerDag,
        shapes: Mapping[str, tuple[int, ...]],
        base: WidthGrowth | None = None,
    ) -> None:
        """Find the dims that grow with the width: those of weights with another layer on that side.

        Args:
            dag: the layer DAG, a graph of the model's layers and other ops.
            shapes: the shape of each parameter.
            base: the growth measured with a base of the same sizes, if there is one.
        """
        self.width_ratio, self.has_base = 1.0, base is not None
        if base is not None:
            self.blocks, self.base_parameters, self.notes = base.blocks, base.base_parameters, base.notes
        self._shapes = shapes
        self._grows: dict[Dim, float] = {}
        above, below = beside_layers(dag, upstream=True), beside_layers(dag, upstream=False)
        weighing = generators(dag)
        of_streams = frozenset().union(*weighing.values())
        for node, layer in dag.layers():
            self._mark(layer.fan_in, above[node])
            self._mark(layer.fan_out, below[node] and node not in weighing)
        for node, vector in dag.vectors():
            consumers = [n for n in dag.successors(node) if n not in of_streams]
            self._mark_vector(vector, dag, any(self._is_inner(dag, n, above, below) for n in consumers))

    @staticmethod
    def _is_inner(dag: LayerDag, node: str, above: dict[str, bool], below: dict[str, bool]) -> bool:
        """Whether a node has a layer behind it and one before it (or is a layer itself), so that its width grows.

        Args:
            dag: the layer DAG, a graph of the model's layers and other ops.
            node: the node.
            above: for each node, whether a layer comes before it.
            below: for each node, whether a layer comes after it.
        """
        return below[node] and (above[node] or isinstance(dag.kind(node), Layer))

    def _mark(self, dims: tuple[Dim, ...], grows: bool) -> None:
        """Set growth exponent 1 for the first of several dims, if they grow: for (channels, kernel) the channels."""
        first = next(iter(dims), None)
        if first is None or not grows:
            return
        if not isinstance(first, ParameterDim) or self._shapes[first.parameter][first.index] > 1:
            self._grows[first] = 1.0

    def _mark_vector(self, vector: Vector, dag: LayerDag, grows: bool) -> None:
        """Set growth exponent 1 for the last dim of a bias or gain that has more than one entry, if it grows."""
        long = [d for d in vector.dims if isinstance(d, ParameterDim) and self._shapes[d.parameter][d.index] > 1]
        self._mark(tuple(long[-1:]), grows)

    def dim(self, dim: Dim) -> float:
        """Return the growth exponent of a dim: 1 for a dim that grows with the width, else 0."""
        return self._grows.get(dim, 0.0)

    def scalar(self, scalar: InGraph) -> float:
        """Return 0, the growth exponent of a constant: from one model alone, no number is known to grow."""
        return 0.0


def beside_layers(dag: LayerDag, upstream: bool) -> dict[str, bool]:
    """Return for each DAG node whether a layer is among the nodes before it, or among those behind it.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        upstream: look at the nodes that it is computed from, where a tensor made of parameters alone counts as well;
            else at those that follow it.
    """
    found: dict[str, bool] = {}
    for node in dag.order if upstream else reversed(dag.order):
        others = dag.predecessors(node) if upstream else dag.successors(node)
        found[node] = any(found[n] or _is_wide(dag, n, node, upstream) for n in others)
    return found


def _is_wide(dag: LayerDag, node: str, beside: str, upstream: bool) -> bool:
    """Whether a DAG node is a layer, so that the width between it and its neighbour `beside` may grow.

    Upstream a tensor made of parameters alone (learned latents), which `beside` reads, counts as well.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        node: the node.
        beside: a node next to it.
        upstream: whether `node` comes before `beside`.
    """
    if isinstance(dag.kind(node), Layer):
        return True
    return upstream and dag.node(node).is_parametric and node in dag.kind(beside).inputs
