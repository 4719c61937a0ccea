"""`Outcome`: everything that one transform found, as frozen data that reports, checks and dynamic rates read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.dag_program import SolvedDag
from abcfx.exponents.depth import DepthScaling
from abcfx.exponents.fixed import FixedExponents
from abcfx.plan.groups import OptimizerGroup, param_groups
from abcfx.plan.options import PlanOptions
from abcfx.plan.spec import ParameterPlan, Spec
from abcfx.theory.parametrizations import Alignments


@dataclass(frozen=True)
class Header:
    """The options of a transform and the facts of its run, for the head of the report.

    Attributes:
        model: class name of the model.
        captured: way of capturing: "symbolic", "export" or "record".
        width_ratio: the width ratio m, width of the model over width of the base; 1 without a base.
        has_base: whether there is a base.
        parametrization: name of the table of the exponents a (multiplier) and b (init), such as "mup".
        optimizer: names of the optimizers, separated by commas.
        alignment: name of the alignment preset, or "given".
        apply: "insert", "absorb", "inplace" or "off".
        init: "auto", "keep" or "redraw".
        attention: factor on the logits of each attention, by DAG node.
        depth: factor on each residual branch, by the DAG node at which it is added.
        rows: number of rows of the linear program.
        columns: number of columns of the linear program.
    """

    model: str
    captured: str
    width_ratio: float
    has_base: bool
    parametrization: str
    optimizer: str
    alignment: str
    apply: str
    init: str
    attention: dict[str, float]
    depth: dict[str, float]
    rows: int
    columns: int

    def to_dict(self) -> dict[str, object]:
        """Return the options of the transform and facts of its run as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """Everything that one `transform` found: graphs, exponents, planned numbers and notes.

    Attributes:
        captured: the model as fx graphs.
        fixed: the layer DAG, and what was fixed before the linear program: roles, exponents a (multiplier) and b
            (init).
        alignments: how strongly updates line up with inputs, as exponents (alpha, omega, u), of every layer node.
        solution: what the linear program found: exponents c (rate), r (change) and of gradients, the constraints that
            hold with equality, and shadow prices.
        depth: factors on residual branches, for a model with more blocks than its base.
        options: the user's constants and choices.
        plan: the numbers of every parameter, by name.
        header: the options of the transform and facts of its run.
        notes: sentences for the user: defaults taken, what was dropped, what the solution costs.
        timings: seconds of each stage.
    """

    captured: CapturedGraph
    fixed: FixedExponents
    alignments: Mapping[str, Alignments]
    solution: SolvedDag
    depth: DepthScaling
    options: PlanOptions
    plan: Mapping[str, ParameterPlan]
    header: Header
    notes: tuple[str, ...]
    timings: Mapping[str, float]

    @property
    def dag(self) -> LayerDag:
        """The layer DAG, a graph of the model's layers and other ops, in train mode."""
        return self.fixed.dag

    @cached_property
    def spec(self) -> Spec:
        """The planned numbers of each parameter as versioned, JSON-able rows."""
        return Spec({name: plan.row() for name, plan in self.plan.items()})

    @property
    def param_groups(self) -> list[OptimizerGroup]:
        """The optimizer groups over the model's parameters, one for each distinct set of hyperparameters."""
        return param_groups(self.captured.model, self.spec)
