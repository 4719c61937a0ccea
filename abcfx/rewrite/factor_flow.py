"""Runs a graph with a factor on some features of a layer's output, to see where in the graph the factor gets to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from abcfx.capture import CapturedGraph
from abcfx.capture.signature import signature_of
from abcfx.passes import scale_nodes
from abcfx.support import trees
from abcfx.support.running import preserved_rng

TEST_FACTOR = 0.5  # a power of two, which rounding leaves alone
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reader:
    """A place where an attention product reads its queries: one fx node as an argument of another.

    Attributes:
        query: the node that returns the queries.
        end: the node that reads them.
    """

    query: fx.Node
    end: fx.Node


def reader_of(product: fx.Node, query: fx.Node) -> Reader | None:
    """Return at which fx nodes an attention product reads its queries; None if it reads them twice.

    Args:
        product: the fx node of the product, which may read them through a scale node (a multiplication by a constant).
        query: the fx node that returns the queries.
    """
    notes = scale_nodes(product.graph)
    ends = [product] if query in product.all_input_nodes else []
    ends += [node for node in product.all_input_nodes if node in notes and query in node.all_input_nodes]
    scaled = [end for end in ends if end is not product]
    if scaled:
        return Reader(query, scaled[0])
    arguments = [leaf for leaf in trees.leaves((product.args, product.kwargs)) if leaf is query]
    return Reader(query, product) if len(arguments) == 1 else None


class FactorFlow:
    """Runs of the part of a graph that follows some layers, to see where a factor on their outputs gets to.

    Random tensors take the place of the layers' own outputs.

    Args:
        captured: the model, with example inputs.
        layers: the fx nodes of the layers.
        readers: the pairs of fx nodes that give queries and read them.
    """

    def __init__(self, captured: CapturedGraph, layers: Sequence[fx.Node], readers: Sequence[Reader]) -> None:
        self._captured, self._layers, self._readers = captured, layers, readers

    def query_features(self) -> torch.Tensor | None:
        """Return a mask of the features (last dim) of the layers' outputs on which the queries of attention depend.

        None if they depend on none, or if the layers' outputs have different numbers of features.
        """
        run = self._run(None)
        queries = [run.env[reader.query] for reader in self._readers]
        total = sum(((query * torch.rand_like(query)).sum() for query in queries), torch.zeros(()))
        if not total.requires_grad or total.is_meta:
            return None
        found = torch.autograd.grad(total, run.drawn, allow_unused=True)
        depends = [gradient.flatten(0, -2).ne(0).any(0) for gradient in found if gradient is not None]
        if len({len(each) for each in depends}) != 1:  # none, or calls with different rows of one weight
            return None
        features = torch.stack(depends).any(0)
        return features if bool(features.any()) else None

    def reaches_queries_alone(self, features: torch.Tensor) -> bool:
        """Whether a factor on these features of the layers' outputs multiplies every query by it, and nothing else."""
        plain, scaled = self._run(None), self._run(torch.where(features, TEST_FACTOR, 1.0))
        allowed = self._between()
        for node, value in plain.env.items():
            if node not in allowed and not _close(value, scaled.env[node]):
                return False
        return all(
            _close(_times(plain.env[reader.query], TEST_FACTOR), scaled.env[reader.query]) for reader in self._readers
        )

    def _run(self, factors: torch.Tensor | None) -> _Run:
        """Run the graph with random outputs of the layers, each feature times its factor (unchanged if None)."""
        signature, examples = signature_of(self._captured.model, self._captured.args or (), self._captured.kwargs or {})
        run = _Run(self._captured.module, self._layers, self._readers, factors)
        buffers = [(buffer, buffer.clone()) for buffer in self._captured.model.buffers()]
        try:
            with preserved_rng(), torch.enable_grad():
                torch.manual_seed(0)
                run.run(*(examples[slot] for slot in signature.slots), enable_io_processing=False)
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return run

    def _between(self) -> set[fx.Node]:
        """Return the graph nodes on the ways from the chosen layers to attention's queries, both ends included."""
        stops, found = set(self._layers), set(self._layers)
        waiting = [reader.query for reader in self._readers]
        ends = {reader.end for reader in self._readers}
        while waiting:
            node = waiting.pop()
            if node not in ends and node not in found:
                found.add(node)
                waiting.extend(() if node in stops else node.all_input_nodes)
        return found


class _Run(fx.Interpreter):
    """An interpreter that runs a graph with random tensors, times `factors`, in place of the outputs of layers.

    Nodes that read queries divide the factors out again.

    Attributes:
        drawn: the random tensors before they are multiplied.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        layers: Collection[fx.Node],
        readers: Sequence[Reader],
        factors: torch.Tensor | None,
    ) -> None:
        """Prepare to run a module's graph with random tensors in the place of the outputs of `layers`.

        Args:
            module: owns the graph.
            layers: the fx nodes of the layers.
            readers: the pairs of fx nodes that give queries and read them.
            factors: what the random tensors are multiplied by; None for nothing.
        """
        super().__init__(module, garbage_collect_values=False)
        self.drawn: list[torch.Tensor] = []
        self._layers, self._factors = layers, factors
        self._queries: Mapping[fx.Node, fx.Node] = {reader.end: reader.query for reader in readers}

    def run_node(self, n: fx.Node) -> object:
        """Run one graph node; a layer returns a random tensor, and a reader of queries gets them without the factor."""
        query = self._queries.get(n)
        if query is None or self._factors is None:
            result = super().run_node(n)
        else:
            kept = self.env[query]
            self.env[query] = _times(kept, 1.0 / TEST_FACTOR)
            result = super().run_node(n)
            self.env[query] = kept
        if n in self._layers:
            drawn = torch.randn_like(result).requires_grad_(True)
            self.drawn.append(drawn)
            return drawn.clone() if self._factors is None else drawn * self._factors.to(drawn)
        return result


def _times(value: object, factor: float) -> object:
    """Return a tensor times a factor; anything else as it is."""
    return value * factor if isinstance(value, torch.Tensor) else value


def _close(left: object, right: object) -> bool:
    """Whether all tensors in the results of two graph nodes are equal up to rounding."""
    pairs = zip(trees.leaves(left), trees.leaves(right), strict=True)
    return all(_equal(x, y) for x, y in pairs if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor))


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are equal up to rounding; those that are not floating-point are not compared."""
    if left.is_meta or not (left.is_floating_point() or left.is_complex()) or not left.numel():
        return True
    left, right = left.detach(), right.detach()
    finite = left.isfinite()
    if not torch.equal(finite, right.isfinite()) or not bool(finite.any()):
        return torch.equal(finite, right.isfinite())
    return bool((left - right)[finite].abs().max() <= TOLERANCE * left[finite].abs().max())
