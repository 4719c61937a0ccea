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
    """The nodes and all that they are made of, ops that write into one of these tensors or a view of it included."""
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
    order = list(graph.nodes)
    last = max(order.index(node) for node in nodes) if nodes else 0
    writes = [node for node in order[:last] if _writes(node)]
    while more := [node for node in writes if node not in found and not found.isdisjoint(_firsts(node))]:
        for node in more:
            add(node)
    return found


def _writes(node: fx.Node) -> bool:
    """Whether an op writes into its first argument: `add_`, `index_put_`, `x[i] = y`."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    return in_place and node.op in ("call_function", "call_method") and bool(node.all_input_nodes)


def _firsts(node: fx.Node) -> set[fx.Node]:
    """What an op writes into, and all that this may be a view of."""
    found = set[fx.Node]()
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        found.add(node)
    return found
