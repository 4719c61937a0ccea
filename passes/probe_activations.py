"""A graph that returns the tensors of chosen nodes and computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx as fx

from abcfx.passes.result import PassError

NAME = "probe_activations"


def probe_activations(gm: fx.GraphModule, graph: fx.Graph, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A GraphModule over the same parameters, buffers and submodules that returns what the nodes of `graph` return.

    It is called as the graph is, with plain tensors in the order of its placeholders; what the nodes do not need
    is left out. The given module is not changed.

    Raises:
        PassError: a node is not in the graph.
    """
    known = set(graph.nodes)
    for node in nodes:
        if node not in known:
            raise PassError(f"{NAME}: {node.name} is not a node of the graph.")
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _needed(graph, nodes)
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = new.node_copy(node, lambda n: copies[n])
    new.output(tuple(copies[node] for node in nodes))
    return fx.GraphModule(gm, new, class_name="Probe")


def _needed(graph: fx.Graph, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they are made of, ops that write into one of these tensors included."""
    found = set[fx.Node]()

    def add(node: fx.Node) -> None:
        waiting = [node]
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                waiting.extend(at.all_input_nodes)

    for node in nodes:
        add(node)
    last = max(list(graph.nodes).index(node) for node in nodes) if nodes else 0
    for node in list(graph.nodes)[:last]:
        name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        writes = node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__")
        if writes and node.all_input_nodes and node.all_input_nodes[0] in found:
            add(node)
    return found
