"""What `transform` returns: module, optimizer groups, what was found, and what can be done with it later."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from torch import nn

from abcfx.capture import CapturedGraph
from abcfx.capture.state import copied
from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import FixedExponents
from abcfx.exponents.dag_program import SolvedDag
from abcfx.exponents.depth import DepthScaling
from abcfx.plan.groups import groups_of, param_groups
from abcfx.plan.init import Init, initialise
from abcfx.plan.parameters import Options
from abcfx.rewrite.folding import Fold
from abcfx.theory.optimizers import Optimizer
from abcfx.theory.parametrizations import Alignments

if TYPE_CHECKING:
    from abcfx.report.explain import Explanation


@dataclass(frozen=True)
class Analysis:
    """What was solved, to be solved again with other alignments: graphs, exponents before the LP, options."""

    captured: CapturedGraph
    setting: FixedExponents
    alignment: Mapping[str, Alignments]
    options: Options
    depth: DepthScaling


@dataclass(frozen=True)
class Transformed:
    """What `transform` returns; `module, param_groups = result` unpacks, `print(result)` prints the report.

    Attributes:
        module: the rewritten model; the same Parameter names and `state_dict` keys as the model.
        groups: the optimizer groups as planned; hand `param_groups`, copies of them, to an optimizer.
        dag: the layer DAG as a networkx DiGraph; nodes carry `kind`, `path`, `s`, `r`, `role`, `parameter`.
        solution: exponents found by the LP, with what binds and shadow prices.
        spec: a JSON-able row for each parameter, by name.
        timings: seconds of each stage.
    """

    module: nn.Module
    groups: list[dict[str, Any]] = field(repr=False)
    dag: nx.DiGraph
    solution: SolvedDag
    spec: dict[str, dict[str, Any]]
    timings: dict[str, float]
    notes: tuple[str, ...] = ()
    header: dict[str, Any] = field(default_factory=dict)
    inits: dict[str, Init] = field(default_factory=dict, repr=False)
    source: nn.Module | None = field(default=None, repr=False)
    analysis: Analysis | None = field(default=None, repr=False)
    folding: Fold = field(default_factory=Fold, repr=False)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for any torch optimizer: fresh dicts, so that what a scheduler does to them is not kept here."""
        return [{**group, "params": list(group["params"])} for group in self.groups]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.module, self.param_groups))

    def init_weights(self, module: nn.Module | None = None) -> nn.Module:
        """Draw every parameter anew as planned: after `to_empty` on a model planned on the meta device, or to restart.

        Args:
            module: a module with the model's parameter names (sharded or not); `self.module` by default.

        Raises:
            InvalidInputError: a parameter is not in the plan, or its init is not known; nothing has been written then.
        """
        target = self.module if module is None else module
        initialise(target, self.inits)
        return target

    def fold(self) -> nn.Module:
        """The trained model as plain weights for inference: the original class and keys, no scale node, no hook.

        It computes what `module` computes now (to rounding). A copy; with `inplace=True` the model object itself, which
        can then be saved, and should not be trained on, since its rates belong to the weights as they were.

        Raises:
            InvalidInputError: a tied parameter would need two factors and no norm can take one; nothing has changed.
        """
        if self.source is None:
            raise InvalidInputError("fold: this result was not made by transform.")
        model = self.source if self.module is self.source else copied(self.source)
        self.folding.apply_to(model)
        return model.train(self.module.training)

    def explain(self, name: str) -> Explanation:
        """In words: why a parameter has its role, how it grows, what holds its c, what would loosen it, what follows.

        Args:
            name: of a parameter, a name tied to it, or the module whose weight it is ("blocks.3.attn.qkv").

        Raises:
            InvalidInputError: there is none of that name; the message has those that are close.
        """
        from abcfx.report.explain import Explainer

        return Explainer(self).explain(name)

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found, as JSON-able values: header, rows, groups, what binds, shadow prices, notes."""
        from abcfx.report.text import as_dict

        return as_dict(self)

    def to_mermaid(self) -> str:
        """The layer DAG as a Mermaid flowchart, as GitHub draws it: repeated blocks once, a colour for each role."""
        from abcfx.report.drawing import mermaid

        return mermaid(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the interactive report: one HTML file that needs no network.

        The layer graph with repeated blocks drawn once, every parameter's row and reasons, what binds, the groups.
        """
        from abcfx.report.drawing import page

        Path(path).write_text(page(self), encoding="utf-8")

    def groups_for(self, optimizer: Optimizer, module: nn.Module | None = None) -> list[dict[str, Any]]:
        """The groups of one optimizer among several: `Muon(result.groups_for("muon"))`.

        Args:
            optimizer: as given to `transform`: a name, a class or an instance.
            module: a module with the model's parameter names whose parameters are other objects by now: after
                `to_empty` on a model planned on the meta device, or sharding. `self.module`, as planned, by default.

        Raises:
            InvalidInputError: no parameter belongs to it; the module has not the parameters of the plan.
        """
        groups = self.param_groups
        if module is not None:
            single = all(len(group["params"]) == 1 for group in groups)
            groups = param_groups(module, self.spec, "parameter" if single else "merged")
        return groups_of(groups, self.spec, optimizer)

    def __str__(self) -> str:
        from abcfx.report.text import render

        return render(self)

    def __repr__(self) -> str:
        return f"Transformed({len(self.spec)} parameters, {len(self.param_groups)} groups, {self.header})"
