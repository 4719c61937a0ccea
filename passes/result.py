"""The result that every pass returns and the error that every pass raises."""

from __future__ import annotations

from collections.abc import Iterable
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
