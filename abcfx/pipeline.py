"""`transform`: the one path from a model to its graphs, layer DAG, exponents, plan and rewritten module."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import nn

from abcfx.capture import CapturedGraph
from abcfx.capture.copying import copied
from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture, CaptureMethod
from abcfx.dag.routing import routing_notes
from abcfx.exponents.assign import assign_exponents, frozen_note, without_multipliers
from abcfx.exponents.attention import describe, find_attention
from abcfx.exponents.dag_program import DagProgram, SolvedDag, solution_notes
from abcfx.exponents.depth import DepthScaling, scale_depth
from abcfx.exponents.fixed import FixedExponents
from abcfx.exponents.narrow import narrow_notes
from abcfx.exponents.options import Parametrization
from abcfx.exponents.segments import balanced
from abcfx.outcome import Header, Outcome
from abcfx.pairing.pair import PairedModels, Shapes
from abcfx.plan.options import (
    ApplyMode,
    ByRole,
    InitLike,
    InitMode,
    Instance,
    Overrides,
    PlanOptions,
    Schedule,
)
from abcfx.plan.own_init import OwnInit, carried_own_init, measure_own_init
from abcfx.plan.parameters import init_note, make_plan
from abcfx.request import Request, built_base, given_apart_of, plan_options, refuse_transformed
from abcfx.rewrite.apply import apply_plan, needs_nodes
from abcfx.support import arguments
from abcfx.support.patterns import plain_name
from abcfx.support.undo import interrupt_if_asked, one_at_a_time
from abcfx.theory.optimizer_groups import GroupNumbers, own_numbers
from abcfx.theory.optimizers import Optimizer, assign_families, assign_optimizers
from abcfx.transformed import Transformed


class TransformOptions(TypedDict, total=False):
    """The options of `transform` that functions which call it pass on to it; `transform` documents them."""

    weight_decay: float | None
    eps: float | None
    apply: ApplyMode
    parametrization: Parametrization | str
    overrides: Overrides
    init: InitMode | InitLike
    schedule: Schedule
    capture: Capture | CaptureMethod


@arguments.checked()
@one_at_a_time
@torch.inference_mode(False)  # which enables gradients as well
def transform(
    model: nn.Module,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    base: Instance | Shapes | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adam",
    lr: ByRole | None = None,
    weight_decay: float | None = None,
    eps: float | None = None,
    apply: ApplyMode = "insert",
    parametrization: Parametrization | str = "mup",
    overrides: Overrides = Overrides(),
    init: InitMode | InitLike = "auto",
    schedule: Schedule = Schedule(),
    capture: Capture | CaptureMethod = "auto",
) -> Transformed:
    """Rewrite a model so that hyperparameters tuned at a small width hold at its own.

    Main arguments:
        model: any model that can be captured. It is not changed, unless apply="inplace".
        args: example positional inputs, as in `torch.export.export`; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        base: the same architecture at the width where the hyperparameters were tuned, or a function that builds it.
            Multipliers, init and rates are then powers of the ratio of widths; at the base width nothing changes.
            Without it they are powers of the width itself. A dict of parameter name to shape will do too, with
            init=InitLike(...) or init="keep"; dims of activations, such as head_dim, are then taken not to grow.
        optimizer: "adam", "adamw", "sgd", "muon", ..., a class, an `OptimizerFamily` that declares how another one
            behaves, or a dict of role, glob pattern or "default" to those; see `Transformed.groups_for`. From an
            instance each parameter takes the lr, weight decay, eps and betas of its group as numbers of the base width.
        lr: learning rate at the base width (absolute; 1e-3 when None), or a dict of role to it.

    Other arguments:
        weight_decay: the user's weight decay (0 when None).
        eps: the user's Adam eps (1e-8 when None); each parameter gets it times width^-g (g: its gradient).
        apply: "insert" puts multipliers into the graph as scale nodes; "absorb" moves them into init and rates, with no
            op added; "inplace" does the same to the model object that was given; "off" sets rates without multipliers.
        parametrization: name of a table ("mup", "sp", "ntk", "mfp"), or a `Parametrization` with alignment, attention
            and depth.
        overrides: `Overrides` of roles, exponents, init constants and weight decay.
        init: what is done to what is random in each tensor: "auto" (with a base: the model's own draw times one factor;
            without: N(0, n^-2b)), "redraw", "keep" (for trained weights), or `InitLike` with two tiny instances, where
            model or base are on the meta device. Constants, means, zero rows and other structure stay.
        schedule: `Schedule` of batch size and number of tokens in ratio to the run in which the lr was tuned.
        capture: name of a capture method, or a `Capture`.

    Returns:
        The rewritten module, optimizer groups and all that was found.

    Raises:
        InvalidInputError: an option is wrong, or a multiplier has no place.
        CaptureError: no way of capturing gave a correct graph.
        UnknownOpError: an op has no rule.
        PairingError: model and base are not instances of one architecture.
        InfeasibleError: given exponents leave no stable solution.

    After any of these errors nothing has been changed.

    Example:
        >>> import torch
        >>> def mlp(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        >>> result = transform(mlp(256), torch.rand(4, 8), base=mlp(64), optimizer="adamw", lr=2**-7)
        >>> optimizer = torch.optim.AdamW(result.param_groups)
        >>> [round(result.plan[name].c, 6) for name in ("0.weight", "2.weight")]
        [0.5, 0.5]
    """
    options = plan_options(optimizer, lr, weight_decay, eps, apply, init, overrides, schedule)
    in_place = options.apply == "inplace"
    given, (built, base_notes) = given_model("model", model, in_place=in_place), built_base(base, init)
    refuse_transformed("model", given.model)
    given_apart = given_apart_of(lr=None if isinstance(lr, Mapping) else lr, weight_decay=weight_decay, eps=eps)
    request = Request(
        model=given.model,
        base=built,
        inputs=(args, kwargs),
        optimizer=optimizer,
        parametrization=Parametrization.of(parametrization),
        options=options,
        given_apart=given_apart,
        init=init,
        capture=Capture.of(capture),
        notes=given.notes + base_notes,
    )
    # The user's own forward runs wherever no node has to be inserted; what only limits a graph is no error then.
    result = None if options.apply == "insert" else _transformed(request, keeps_forward=True)
    if result is None:
        result = _transformed(request, keeps_forward=False)
        assert result is not None
    return result


def _transformed(request: Request, *, keeps_forward: bool) -> Transformed | None:
    """Carry out one transform, all from the capture to the rewritten module.

    Args:
        request: what is asked for.
        keeps_forward: whether the forward of the user's own class goes on to run, in place of a graph.

    Returns:
        The result; None if the user's own forward cannot go on to run, since a node has to be inserted. Nothing has
        been changed then.
    """
    options, asked, optimizer, init = request.options, request.parametrization, request.optimizer, request.init
    clock, in_place = _Stopwatch(), options.apply == "inplace"
    with clock("capture"):
        own_model = request.model if in_place else copied(request.model)
        pair = PairedModels(
            own_model, request.base, *request.inputs, request.capture, keeps_forward=keeps_forward, splits=True
        )
        captured = pair.target_graph
    with clock("dag"):
        dag = pair.target_dag
    with clock("base and widths"):
        growth = pair.growth
    with clock("exponents"):
        fixed, assigned, fixed_notes = _fixed_exponents(pair, asked, optimizer, options)
    with clock("solve"):
        alignments = asked.alignments(dag, fixed.parameters)
        solved = DagProgram(fixed, alignments).solve()
    with clock("plan"):
        depth = scale_depth(asked.depth, fixed, options.overrides.decay_mode)
        own_init = _own_init(captured, fixed, init)
        numbers = _own_numbers(request.model, pair, assigned, request.given_apart)
        plan = make_plan(fixed, solved, dict(captured.model.named_parameters()), own_init, options, depth, numbers)
    if keeps_forward and not in_place and needs_nodes(pair, fixed, plan, depth):
        return None
    with clock("rewrite"):
        told = (*captured.notes, *dag.notes, *routing_notes(captured.module.graph), *growth.notes)
        notes = request.notes + told + solution_notes(fixed, solved) + narrow_notes(fixed) + fixed_notes + depth.notes
        applied = apply_plan(pair, fixed, plan, depth, options.apply, keeps_forward=keeps_forward)
    outcome = Outcome(
        captured=captured,
        fixed=fixed,
        alignments=alignments,
        solution=solved,
        depth=depth,
        options=options,
        plan=plan,
        header=_header(captured, fixed, asked, options, depth, solved),
        notes=notes + applied.notes + init_note(plan),
        timings=clock.seconds,
    )
    return Transformed(applied.module, outcome, applied.fold)


class _Stopwatch:
    """A stopwatch: `with clock("capture"):` measures the block; `seconds` has the time of each stage, in order.

    A Ctrl-C that was held back takes effect between stages.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the seconds that the block takes, and store them under the name of a stage."""
        start = time.perf_counter()
        interrupt_if_asked()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _fixed_exponents(
    pair: PairedModels,
    asked: Parametrization,
    optimizer: Optimizer | Mapping[str, Optimizer],
    options: PlanOptions,
) -> tuple[FixedExponents, dict[str, Optimizer], tuple[str, ...]]:
    """Decide what is fixed before the linear program: roles, exponents, and factors on attention logits.

    Roles are "embedding", "hidden" and so on; the exponents are a of multipliers m^-a and b of inits m^-b (m, the width
    ratio).

    Args:
        pair: model and base side by side.
        asked: the parametrization that the user chose.
        optimizer: the optimizer, or one for each role or pattern, as the user gave it.
        options: the other options of `transform`.

    Returns:
        These exponents with the layer DAG; each parameter's optimizer; notes on frozen parameters and attention.
    """
    dag, growth, overrides = pair.target_dag, pair.growth, options.overrides
    asked.check_base(growth.width_ratio)
    parameters = dict(pair.target_graph.model.named_parameters())
    decided = assign_exponents(dag, growth, parameters, asked.table, overrides.roles, overrides.exponents)
    is_unscaled = options.apply == "off" or options.init == "keep"
    decided = {name: without_multipliers(each) for name, each in decided.items()} if is_unscaled else decided
    assigned = assign_optimizers(optimizer, {name: each.role for name, each in decided.items()}, parameters)
    families = assign_families(assigned, parameters)
    fixed = FixedExponents(dag, growth, decided, families)
    fixed = fixed if is_unscaled else balanced(fixed, asked.alignments)
    if is_unscaled or asked.attention == "keep":
        return fixed, assigned, frozen_note(decided)
    logits = find_attention(fixed) if growth.has_base else ()
    missing = {each.node: each.missing for each in logits if each.missing}
    return fixed.with_attention(missing), assigned, frozen_note(decided) + describe(logits)


def _own_numbers(
    model: nn.Module, pair: PairedModels, assigned: Mapping[str, Optimizer], given: Collection[str]
) -> dict[str, GroupNumbers]:
    """Return lr, weight decay and the like of each parameter, as optimizer instances of the user's have them.

    Args:
        model: the user's model, whose parameters an optimizer instance may hold.
        pair: model and base side by side; an instance may hold the base's parameters as well.
        assigned: the optimizer of each parameter.
        given: names of the numbers that the user gave for all parameters, which are not taken from an instance.
    """
    target = dict(pair.target_graph.model.named_parameters())
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        names_of.setdefault(id(parameter), []).append(plain_name(name, target))
    theirs = dict(pair.base.named_parameters()) if pair.base is not None else {}
    for name in target:
        if (twin := theirs.get(pair.blocks.twin(name))) is not None:
            names_of.setdefault(id(twin), []).append(name)
    learning = {name for name, parameter in target.items() if parameter.requires_grad}
    return own_numbers(assigned, names_of, learning, given)


def _own_init(captured: CapturedGraph, fixed: FixedExponents, init: InitMode | InitLike) -> dict[str, OwnInit] | None:
    """Measure how a model's own init scales with width, by comparing its parameters with those of a smaller base.

    Args:
        captured: the model with its graphs.
        fixed: has growth exponents of dims, the base's parameters, and the exponent b of each planned init m^-b.
        init: what the user wants; an `InitLike` has instances with weights in place of model and base.

    Returns:
        The own init of each parameter; None without a base, and where there are no weights to read it off.
    """
    widths = fixed.widths
    if not widths.has_base:
        return None
    ours, theirs = dict(captured.model.named_parameters()), widths.base_parameters
    planned = {name: each.b for name, each in fixed.parameters.items()}
    if isinstance(init, InitLike):
        small, large = (dict(given_model("init", each).model.named_parameters()) for each in (init.small, init.large))
        return carried_own_init((small, large), ours, theirs, widths, fixed.fan_in_growth(), planned)
    if any(p.is_meta for p in (*ours.values(), *theirs.values())):
        return None
    return measure_own_init(ours, theirs, widths, fixed.fan_in_growth(), planned)


def _header(
    captured: CapturedGraph,
    fixed: FixedExponents,
    asked: Parametrization,
    options: PlanOptions,
    depth: DepthScaling,
    solved: SolvedDag,
) -> Header:
    """Collect the options of this transform and facts of its run, for the head of the report.

    Args:
        captured: the model with its graphs.
        fixed: the exponents that were fixed before the linear program.
        asked: the parametrization that the user chose.
        options: the other options of `transform`.
        depth: factors on residual branches, for a model with more blocks than its base.
        solved: the solution of the linear program.
    """
    m = fixed.widths.width_ratio
    return Header(
        model=type(captured.model).__name__,
        captured=captured.method,
        width_ratio=m,
        has_base=fixed.widths.has_base,
        parametrization=asked.table,
        optimizer=", ".join(dict.fromkeys(family.name for family in fixed.families.values())),
        alignment=asked.alignment if isinstance(asked.alignment, str) else "given",
        apply=options.apply,
        init=options.init,
        attention={node: float(m**-a) for node, a in fixed.attention.items()},
        depth={merge: float(ratio**-depth.a) for merge, ratio in depth.branches.items()},
        rows=solved.rows,
        columns=solved.columns,
    )
