"""The result that every pass returns and the error that every pass raises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx


class PassError(RuntimeError):
    """The error that a pass could not do what it was asked to; it names the pass, the node and the reason."""


@dataclass(frozen=True)
class PassResult:
    """The outcome of a pass, which is a rewrite of an fx graph.

    Attributes:
        graph_module: the module to go on with: the given one after a rewrite, a new one from `probe_activations`.
        touched: names of the nodes that were made or changed.
        notes: sentences for the report.
    """

    graph_module: fx.GraphModule
    touched: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether the pass made or changed a node of the graph."""
        return bool(self.touched)


def check_module(name: str, module: object) -> None:
    """Refuse what is no module with a graph.

    Args:
        name: the pass, for the message.
        module: the caller's value.

    Raises:
        PassError: it is something else.
    """
    if not isinstance(module, fx.GraphModule):
        raise PassError(f"{name}: module: expected an fx.GraphModule, got a value of type {type(module).__name__}.")


def checked_nodes(name: str, nodes: object, graph: fx.Graph | None = None) -> list[fx.Node]:
    """Return a sequence of nodes as a list.

    Args:
        name: the pass, for the message.
        nodes: the caller's value.
        graph: a graph of which all of them have to be; None for any.

    Raises:
        PassError: it is no sequence, or has something else in it, or a node of another graph.
    """
    if not isinstance(nodes, Sequence) or isinstance(nodes, str):
        raise PassError(f"{name}: expected a list of nodes, got a value of type {type(nodes).__name__}.")
    for node in nodes:
        if not isinstance(node, fx.Node):
            raise PassError(f"{name}: expected a list of nodes, got one with a value of type {type(node).__name__}.")
        if graph is not None and node.graph is not graph:
            raise PassError(f"{name}: {node.name} is not a node of the graph.")
    return list(nodes)


def check_factor(name: str, factor: object) -> None:
    """Refuse a factor that is no finite number.

    Args:
        name: the pass and what the factor multiplies, for the message.
        factor: the caller's value.

    Raises:
        PassError: it is something else.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
        got = repr(factor) if isinstance(factor, int | float | str) else f"a value of type {type(factor).__name__}"
        raise PassError(f"{name}: factor: expected a finite number, got {got}.")


def finish(module: fx.GraphModule, changed: Iterable[fx.Node], touched: Iterable[str]) -> PassResult:
    """Check rewritten graphs, generate the code of their modules anew, and return the result of the pass.

    Args:
        module: the module that was rewritten. It may own several graphs.
        changed: one node or more of every graph that was changed.
        touched: names of the nodes that were made or changed, for the result.
    """
    graphs = {id(node.graph): node.graph for node in changed}
    for graph in graphs.values():
        graph.lint()
        if isinstance(owner := graph.owning_module, fx.GraphModule) and owner is not module:
            owner.recompile()
    if graphs:
        module.recompile()
    return PassResult(module, tuple(touched))
