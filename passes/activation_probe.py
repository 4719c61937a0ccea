"""Build a graph that returns the tensors of chosen nodes and computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from abcfx.passes.quoted_names import quoted_names
from abcfx.passes.result import PassError, PassResult, checked_nodes

NAME = "probe_activations"


def probe_activations(module: fx.GraphModule, graph: fx.Graph, nodes: Sequence[fx.Node]) -> PassResult:
    """Make a module that returns the values of chosen nodes of a graph and computes nothing else.

    It shares the parameters, buffers and submodules of the given module, which is not changed, and takes plain tensors
    in the order of the graph's placeholders.

    Args:
        module: the module that owns the graph.
        graph: the graph of the nodes, one of those that the module owns.
        nodes: the nodes whose values are returned, in this order.

    Returns:
        The new module, and the names that the nodes have in it.

    Raises:
        PassError: a node is not in the graph.
    """
    if not isinstance(module, nn.Module) or not isinstance(graph, fx.Graph):
        got = " and ".join(type(each).__name__ for each in (module, graph))
        raise PassError(f"{NAME}: expected a module and one of its graphs, got {got}.")
    nodes = checked_nodes(NAME, nodes, graph)
    probe = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _needed(graph, nodes)
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = probe.node_copy(node, lambda each: copies[each])
    probe.output(tuple(copies[node] for node in nodes))
    with quoted_names():
        result = fx.GraphModule(module, probe, class_name="Probe")
    return PassResult(result, tuple(copies[node].name for node in nodes))


def _needed(graph: fx.Graph, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the chosen nodes of a graph, all that they depend on, and in-place ops that write into any of these.

    An in-place op counts if it writes into such a tensor or into a view of it.
    """
    found = set[fx.Node]()

    def add(node: fx.Node) -> None:
        """Add a node of the graph, and all nodes that it depends on, to the set of nodes that are needed."""
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(current.all_input_nodes)

    for node in nodes:
        add(node)
    order = list(graph.nodes)
    last = max(order.index(node) for node in nodes) if nodes else 0
    writes = [node for node in order[:last] if _is_in_place(node)]
    # Adding a write may add tensors that other writes go into: repeat until nothing is added.
    while more := [node for node in writes if node not in found and not found.isdisjoint(_written_into(node))]:
        for node in more:
            add(node)
    return found


def _is_in_place(node: fx.Node) -> bool:
    """Whether an op writes into its first argument, as `add_`, `index_put_` and `x[i] = y` do."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    return in_place and node.op in ("call_function", "call_method") and bool(node.all_input_nodes)


def _written_into(node: fx.Node) -> set[fx.Node]:
    """Return the node whose tensor an in-place op writes into, and all nodes that this tensor may be a view of."""
    found = set[fx.Node]()
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        found.add(node)
    return found
