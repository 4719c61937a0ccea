"""`Transformed`: the result of `transform`, with its module, its optimizer groups, and what can be done with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import networkx as nx
from torch import nn

from abcfx.capture.copying import copied
from abcfx.capture.uncalled import allow_hooks
from abcfx.exponents.dag_program import SolvedDag
from abcfx.outcome import Header, Outcome
from abcfx.plan.groups import OptimizerGroup, groups_of, param_groups
from abcfx.plan.init import Init, initialise
from abcfx.plan.spec import ParameterPlan, Spec
from abcfx.report.drawing import mermaid, page
from abcfx.report.explain import Explainer
from abcfx.report.explanation import Explanation
from abcfx.report.text import as_dict, render
from abcfx.rewrite.folding import Fold
from abcfx.support.files import writable_file, write_text
from abcfx.theory.optimizers import Optimizer


@dataclass(frozen=True)
class Transformed:
    """The result of `transform`; `module, param_groups = result` unpacks it, `print(result)` prints the report.

    Attributes:
        module: the rewritten model, with the Parameter names and `state_dict` keys of the model that was given. Where
            its graph multiplies weights, the state dict has one entry more: the model's own class refuses to load it.
        outcome: everything that was found, as frozen data.
        folding: how the trained model is turned into plain weights.
    """

    module: nn.Module
    outcome: Outcome = field(repr=False)
    folding: Fold = field(repr=False)

    def __iter__(self) -> Iterator[nn.Module | list[OptimizerGroup]]:
        """Yield the module and the optimizer groups, so that `module, groups = result` works."""
        return iter((self.module, self.param_groups))

    # -- what was found

    @property
    def spec(self) -> Spec:
        """The planned numbers of each parameter as JSON-able rows, by name; keep `spec.to_json()` in a checkpoint."""
        return self.outcome.spec

    @property
    def plan(self) -> Mapping[str, ParameterPlan]:
        """The planned numbers (lr, init, ...) of each parameter by name, as typed data."""
        return self.outcome.plan

    @property
    def header(self) -> Header:
        """The options of `transform` and facts of this run, for the head of the report."""
        return self.outcome.header

    @property
    def solution(self) -> SolvedDag:
        """The exponents that the linear program found, the constraints that keep rates down, and shadow prices."""
        return self.outcome.solution

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences that a user should know: defaults taken, what was dropped, what the solution costs."""
        return self.outcome.notes

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds that each stage of the transform took."""
        return self.outcome.timings

    @property
    def inits(self) -> dict[str, Init]:
        """How every parameter's tensor is initialised (kept, multiplied or drawn again), by name."""
        return {name: plan.init for name, plan in self.plan.items()}

    @property
    def dag(self) -> nx.DiGraph:
        """The layer DAG (a graph of the model's layers and other ops) as a networkx graph of its own.

        Nodes carry `kind`, `path` (module path), `parameter` (None for what is no weight), `role` (of the parameter,
        else the name of the kind), `weight` (whether it is a layer), `output`, and the exponents `s` (rms
        of the output at init ~ m^-s; m, the width ratio) and `r` (its change ~ m^-r; None where nothing changes).
        """
        graph, solved = self.outcome.dag.to_networkx(), self.solution
        for node, data in graph.nodes.items():
            data["s"], data["r"] = solved.s[node], solved.r.get(node)
            data["role"] = self.plan[data["parameter"]].role if data["parameter"] else data["kind"].name
        return graph

    # -- optimizer groups

    @property
    def param_groups(self) -> list[OptimizerGroup]:
        """The groups for any torch optimizer, one for each set of hyperparameters; new dicts at every access."""
        return self.groups()

    def groups(self, per_parameter: bool = False) -> list[OptimizerGroup]:
        """Return optimizer groups over the parameters of `module`: plain dicts for any torch optimizer.

        Args:
            per_parameter: make one group for each parameter, as needed for rates that change while training; else
                parameters with equal hyperparameters share a group.
        """
        return param_groups(self.module, self.spec, per_parameter)

    def groups_for(
        self, optimizer: Optimizer, module: nn.Module | None = None, per_parameter: bool = False
    ) -> list[OptimizerGroup]:
        """Return the groups of one optimizer among several: `Muon(result.groups_for("muon"))`.

        Args:
            optimizer: the optimizer as it was given to `transform`: a name, a class or an instance.
            module: a module with the model's parameter names whose parameters are other objects by now: after
                `to_empty` on a model planned on the meta device, or sharding. `self.module` by default.
            per_parameter: make one group for each parameter.

        Raises:
            InvalidInputError: no parameter belongs to it; the module has not the parameters of the plan.
        """
        target = self.module if module is None else module
        return groups_of(param_groups(target, self.spec, per_parameter), self.spec, optimizer)

    # -- weights

    def init_weights(self, module: nn.Module | None = None) -> nn.Module:
        """Draw every parameter anew as planned, and return the module.

        That is needed after `to_empty` on a model planned on the meta device, or to start again.

        Args:
            module: a module with the model's parameter names (sharded or not); `self.module` by default.

        Raises:
            InvalidInputError: a parameter is not in the plan, or its init is not known; nothing has been written then.
        """
        target = self.module if module is None else module
        initialise(target, self.inits)
        return target

    def fold(self) -> nn.Module:
        """Turn the trained model into plain weights for inference, without extra ops or hooks, in its original class.

        It computes what `module` computes now (to rounding).

        Returns:
            A copy of the model; after apply="inplace" the model object itself, which can then be saved, and should not
            be trained on, since its rates belong to the weights as they were.

        Raises:
            InvalidInputError: a tied parameter would need two factors and no norm can take one; nothing has changed.
        """
        source = self.outcome.captured.model
        model = source if self.outcome.options.apply == "inplace" else copied(source)
        allow_hooks(model)
        self.folding.apply_to(model)
        return model.train(self.module.training)

    # -- reports

    def explain(self, name: str) -> Explanation:
        """Explain one parameter in words: role ("hidden", ...), growth, what limits its learning rate, what follows.

        Args:
            name: name of a parameter, a name tied to it, or the module whose weight it is ("blocks.3.attn.qkv").

        Raises:
            InvalidInputError: there is none of that name; the message has those that are close.
        """
        return Explainer(self.outcome).explain(name)

    def to_dict(self) -> dict[str, object]:
        """Return everything that was found as JSON-able values: header, parameters, groups, shadow prices, notes."""
        return as_dict(self.outcome)

    def to_mermaid(self) -> str:
        """Return the graph of the model's layers as a Mermaid flowchart, which GitHub draws.

        Repeated blocks are drawn once; the colour of a box is that of its weight's role ("hidden", ...).
        """
        return mermaid(self.outcome)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the interactive report: one HTML file that needs no network.

        It has the layer graph with repeated blocks drawn once, every parameter's row and reasons, and the groups.

        Raises:
            InvalidInputError: the folder is missing, or the path is a folder or a symlink.
        """
        writable_file("to_html", path)  # before the page is made
        write_text("to_html", path, page(self.outcome))

    def __str__(self) -> str:
        """Return the printed report of the transform."""
        return render(self.outcome)

    def __repr__(self) -> str:
        """Return one line with the number of parameters and groups, and the options of the transform."""
        return f"Transformed({len(self.spec)} parameters, {len(self.param_groups)} groups, {self.header})"
