"""The result that every pass returns and the error that every pass raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx


class PassError(RuntimeError):
    """Says that a pass could not do what it was asked to; the message names the pass, the node and the reason."""


@dataclass(frozen=True)
class PassResult:
    """The outcome of a pass.

    Attributes:
        graph_module: the module to go on with: the given one after a rewrite, a new one from `probe_activations`.
        touched: names of the nodes that were made or changed.
        notes: sentences for whoever reads the report.
    """

    graph_module: fx.GraphModule
    touched: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        """True when the pass changed something."""
        return bool(self.touched)


def finish(module: fx.GraphModule, changed: Iterable[fx.Node], touched: Iterable[str]) -> PassResult:
    """Check the graphs of the changed nodes, generate the code of their modules anew and return the pass's result.

    Args:
        module: the module that was rewritten. It may own several graphs.
        changed: one node or more of every graph that was changed.
        touched: names for the result.
    """
    graphs = {id(node.graph): node.graph for node in changed}
    for graph in graphs.values():
        graph.lint()
        if isinstance(owner := graph.owning_module, fx.GraphModule) and owner is not module:
            owner.recompile()
    if graphs:
        module.recompile()
    return PassResult(module, tuple(touched))
