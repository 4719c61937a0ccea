"""A graph in place of an `nn.Sequential` with multipliers inside, whose parts are found, sliced and added as before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import fx, nn

from abcfx.capture import EmittedModule
from abcfx.capture.codegen import SignatureCodeGen, signature_of_graph
from abcfx.errors import InvalidInputError
from abcfx.passes import scale_nodes


class EmittedSequential(EmittedModule):
    """A module with a graph in place of an `nn.Sequential`.

    A multiplier on what a part takes belongs to that part, as does one on what it gives: a slice keeps both.
    """

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the parts in order."""
        return iter(module for module in self._modules.values() if module is not None)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    @overload
    def __getitem__(self, index: slice) -> nn.Sequential | EmittedSequential: ...

    def __getitem__(self, index: int | slice) -> nn.Module:
        """Return a part by its position; for a slice, a module that runs these parts, with their multipliers.

        Raises:
            InvalidInputError: a slice was asked for, and the graph is no chain of these parts.
        """
        if not isinstance(index, slice):
            return list(self)[index]
        items = list(self._modules.items())
        chosen = range(len(items))[index]
        parts = nn.Sequential(OrderedDict((name, part) for name, part in items[index] if part is not None))
        parts.training = self.training
        graphs = [self._chained(graph, self._segments(graph), chosen) for graph in self.graphs]
        if not any(scale_nodes(graph) for graph in graphs):
            return parts
        return EmittedSequential(parts, *graphs, class_name=type(self).__name__)

    def __setitem__(self, index: int, part: nn.Module) -> None:
        """Put another module in the place of a part; the multipliers around it stay."""
        setattr(self, list(self._modules)[index], part)

    def append(self, part: nn.Module) -> EmittedSequential:
        """Add a module that runs after all parts, and return this one."""
        name = str(len(self))
        self.add_module(name, part)
        for graph in self.graphs:
            output = graph.output_node()
            (last,) = output.all_input_nodes
            with graph.inserting_before(output):
                output.replace_input_with(last, graph.call_module(name, (last,)))
        self.recompile()
        return self

    def _segments(self, graph: fx.Graph) -> list[list[fx.Node]]:
        """Return the nodes of each part, in order: multipliers on what it takes, its call, those on what it gives.

        Raises:
            InvalidInputError: the graph is no chain of calls of the parts and of multipliers.
        """
        scales, parts = scale_nodes(graph), list(self)
        found: list[list[fx.Node]] = [[] for _ in parts]
        before: list[fx.Node] = []
        (current,), at = graph.find_nodes(op="placeholder"), -1
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if node.all_input_nodes != [current]:
                raise _refusal()
            current = node
            if node.op == "call_module":
                # Parts between two calls compute nothing: an `nn.Identity`, or dropout in eval mode.
                called = self.get_submodule(str(node.target))
                at = next((index for index in range(at + 1, len(parts)) if parts[index] is called), len(parts))
                if at == len(parts):
                    raise _refusal()
                found[at], before = [*before, node], []
            elif node not in scales or node.target is not torch.mul:
                raise _refusal()
            elif scales[node].on_result and at >= 0 and not before:
                found[at].append(node)
            else:
                before.append(node)
        if before or graph.output_node().all_input_nodes != [current]:
            raise _refusal()
        return found

    def _chained(self, graph: fx.Graph, segments: Sequence[Sequence[fx.Node]], chosen: Sequence[int]) -> fx.Graph:
        """Return a graph that runs some parts after each other.

        Args:
            graph: the graph of all parts in one mode, whose signature the new one has.
            segments: the nodes of each part.
            chosen: positions of the parts, in order.
        """
        new = fx.Graph()
        (given,) = graph.find_nodes(op="placeholder")
        current = new.node_copy(given)
        for index in chosen:
            for node in segments[index]:
                (read,) = node.all_input_nodes
                current = new.node_copy(node, {read: current}.__getitem__)
        new.output(current)
        if (signature := signature_of_graph(graph)) is not None:
            new.set_codegen(SignatureCodeGen(signature))
        return new


def _refusal() -> InvalidInputError:
    """Return the error that a Sequential cannot be sliced."""
    return InvalidInputError(
        "This Sequential has multipliers that belong to none of its parts alone, so that a slice of it would leave "
        "them out.\n"
        "  To fix: take single parts, by whole numbers; or slice the model that result.fold() returns."
    )
