"""The one path: capture, layer DAG, widths, exponents, LP, plan, rewrite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import networkx as nx
from torch import nn

from abcfx.capture import CapturedGraph, EmittedModule
from abcfx.capture import capture as capture_model
from abcfx.capture.examples import OpenSizes
from abcfx.capture.state import copied
from abcfx.dag.layer_dag import LayerDag, build_dag
from abcfx.errors import CaptureError, InvalidInputError, PairingError
from abcfx.exponents.assign import FixedExponents, Given, ParameterExponents, assign_exponents
from abcfx.exponents.attention import describe, find_attention
from abcfx.exponents.dag_program import DagProgram, SolvedDag, warnings
from abcfx.exponents.depth import DepthScaling, scale_depth
from abcfx.pairing.widths import WidthGrowth, measure_growth
from abcfx.passes import scale_nodes
from abcfx.plan.groups import param_groups
from abcfx.plan.init import OwnInit, carried_own_init, measure_own_init
from abcfx.plan.parameters import ByRole, Options, ParameterPlan, make_plan, unscaled
from abcfx.rewrite.apply import apply_plan
from abcfx.rewrite.folding import has_hooks
from abcfx.support.patterns import match_patterns
from abcfx.theory.optimizers import Optimizer, OptimizerFamily, assign_families, hyperparameters
from abcfx.theory.parametrizations import Alignments, alignment_preset
from abcfx.transformed import Analysis, Transformed

Instance = nn.Module | Callable[[], nn.Module]
Shapes = Mapping[str, Sequence[int]]
AlignmentOption = str | Sequence[float] | Mapping[str, str | Sequence[float]]


def transform(
    model: nn.Module,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    base: Instance | Shapes | None = None,
    parametrization: str = "mup",
    optimizer: Optimizer | Mapping[str, Optimizer] = "adam",
    alignment: AlignmentOption = "full",
    lr: ByRole | None = None,
    weight_decay: float | None = None,
    weight_decay_mode: str = "independent",
    no_decay: Sequence[str] = (),
    eps: float | None = None,
    batch_ratio: float = 1.0,
    horizon_ratio: float = 1.0,
    roles: Mapping[str, str] | None = None,
    exponents: Given | None = None,
    std: ByRole = 1.0,
    init: str = "auto",
    scales: str = "insert",
    attention: str = "scale",
    depth: str = "none",
    groups: str = "merged",
    inplace: bool = False,
    capture: str = "auto",
    verify: bool = True,
    unknown: str = "raise",
    init_like: tuple[Instance, Instance] | None = None,
) -> Transformed:
    """Rewrite a model so that hyperparameters tuned at a small width hold at its own.

    Args:
        model: any model that can be captured. It is not changed, unless `inplace`.
        args: example positional inputs, as in `torch.export.export`; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        base: the same architecture at the width where the hyperparameters were tuned, or a function that builds it.
            Multipliers, init, rates are then powers of the ratio of widths; at the base width nothing changes.
            Without it they are powers of the width itself. A dict of parameter name to shape will do too, with
            `init_like` or init="keep"; dims of activations, such as head_dim, are then taken not to grow.
        parametrization: table of (a, b): "mup", "sp", "ntk" or "mfp".
        optimizer: "adam", "adamw", "sgd", "muon", ..., a class or an instance (its lr, weight decay and eps are then
            the defaults here), or a dict of role, glob pattern or "default" to those; see `Transformed.groups_for`.
        alignment: "full", "no", "worst", or (alpha, omega, u); or a dict of glob pattern to one of these.
        lr: base learning rate (absolute; 1e-3 when None), or a dict of role to it.
        weight_decay: the user's weight decay (0 when None).
        weight_decay_mode: "independent" keeps lr x weight decay of each parameter independent of width; "coupled"
            lets it shrink as the lr does (one number for all once multipliers are absorbed); "fixed" writes the same
            number into every group.
        no_decay: roles and glob patterns of parameters without weight decay, such as ("vector", "scalar").
        eps: the user's Adam eps (1e-8 when None); each parameter gets it times width^-g (g: its gradient).
        batch_ratio: batch size over that of the run where lr was tuned: lr x ratio^1/2 (SGD: x ratio).
        horizon_ratio: number of training tokens over that of the run where lr was tuned: lr x ratio^-0.32.
        roles: glob pattern on parameter names -> role, over what the graph says.
        exponents: glob pattern -> (a, b) or (a, b, c), or a list of those in the order in which the layers run.
        std: constant on the init of every weight, or a dict of role to it.
        init: "auto" (with a base: the model's own draw times one factor; without: N(0, n^-2b)), "redraw", "keep".
        scales: "insert" multipliers as graph nodes, "absorb" them into init and rates, or "off": none at all.
        attention: "scale" multiplies attention logits, where head_dim grows, by what is missing for 1 / head_dim;
            "keep" leaves them as they are, and the report says what that costs.
        depth: where the base has fewer blocks: "completep" or "mup" scale residual branches, rates and eps with the
            ratio; "none" leaves them.
        groups: "merged" (one per distinct set of hyperparameters) or "parameter".
        inplace: change the given model object (its init) instead of a copy; needs `scales="absorb"` or "off".
        capture: "symbolic", "export", "record", or "auto": the first of them that captures the model correctly.
        verify: compare the captured graph with the model on other inputs before anything is built on it.
        unknown: an op without a rule: "raise", or "report" it and take it for one that passes on its inputs' changes.
        init_like: two tiny instances (small, large) with real weights, or functions that build them, off which the
            model's own init is read when model or base are on the meta device.

    Raises:
        InvalidInputError, CaptureError, UnknownOpError, PairingError, InfeasibleError: nothing has been changed then.
    """
    numbers = _numbers(optimizer, lr=lr, weight_decay=weight_decay, eps=eps)
    options = Options(
        **numbers,
        std=std,
        init=init,
        scales=scales,
        weight_decay_mode=weight_decay_mode,
        no_decay=tuple(no_decay),
        batch_ratio=batch_ratio,
        horizon_ratio=horizon_ratio,
    )
    if attention not in ("scale", "keep"):
        raise InvalidInputError(f"attention={attention!r}; expected 'scale' or 'keep'.")
    if inplace and scales == "insert":
        raise InvalidInputError(
            "inplace=True changes the model object itself, and scale nodes live in a graph:\n"
            "  its weights would be re-initialised but not scaled.\n"
            "  To fix: transform(..., inplace=True, scales='absorb')"
        )
    clock = _Clock()
    with clock("capture"):
        _refuse_transformed("model", model)
        own_model = model if inplace else copied(model)
        captured = capture_model(own_model, args, kwargs, method=capture, verify=verify)
    with clock("dag"):
        dag = build_dag(captured, unknown=unknown)
    parameters = dict(captured.model.named_parameters())
    with clock("base and widths"):
        growth = _pair(captured, dag, base, capture, _shapes(base, init, init_like))
    with clock("exponents"):
        decided = assign_exponents(dag, growth, parameters, parametrization, roles, exponents)
        decided = unscaled(decided) if scales == "off" or init == "keep" else decided
        families = assign_families(optimizer, {name: each.role for name, each in decided.items()}, parameters)
        setting = FixedExponents(dag, growth, decided, families)
        keep = attention == "keep" or scales == "off" or init == "keep"
        logits = find_attention(setting) if growth.has_base and not keep else ()
        if not keep:
            setting = setting.with_attention({each.node: each.missing for each in logits if each.missing})
    with clock("solve"):
        alignments = _alignments(alignment, dag, decided)
        solved = DagProgram(setting, alignments).solve()
    with clock("plan"):
        own = _own_init(captured, setting, init_like)
        deep = scale_depth(depth, dag, growth.blocks, families, weight_decay_mode)
        plan = make_plan(setting, solved, parameters, own, options, deep)
    with clock("rewrite"):
        notes = captured.notes + dag.notes + growth.notes + warnings(setting, solved) + describe(logits) + deep.notes
        fold, more = apply_plan(captured, setting, plan, deep, scales == "absorb", inplace, unknown)
        spec = {name: row.row() for name, row in plan.items()}
        optimizer_groups = param_groups(captured.model, spec, groups)
    return Transformed(
        module=model if inplace else captured.module,
        groups=optimizer_groups,
        dag=_annotated(dag, solved, plan),
        solution=solved,
        spec=spec,
        timings=clock.seconds,
        notes=notes + more,
        inits={name: row.init for name, row in plan.items()},
        header=_header(captured, growth, parametrization, families, alignment, options, setting, deep, solved),
        source=captured.model,
        folding=fold,
        analysis=Analysis(captured, setting, alignments, options, deep),
    )


def _numbers(optimizer: object, **given: Any) -> dict[str, Any]:
    """lr, weight decay and eps: as given, else those of an optimizer instance, else the usual ones."""
    defaults = {"lr": 1e-3, "weight_decay": 0.0, "eps": None} | hyperparameters(optimizer)
    return {key: defaults[key] if value is None else value for key, value in given.items()}


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _build(argument: str, given: Instance) -> nn.Module:
    built = given if isinstance(given, nn.Module) or not callable(given) else given()
    if not isinstance(built, nn.Module):
        raise InvalidInputError(
            f"{argument}: expected a module or a function that builds one, got {type(built).__name__}.\n"
            f"  To fix: abcfx.transform(model, inputs, {argument}=lambda: Model(width=64))"
        )
    return built


def _shapes(base: Instance | Shapes | None, init: str, like: tuple[Instance, Instance] | None) -> Shapes | None:
    """The base's shapes where it was given by these alone."""
    if not isinstance(base, Mapping):
        return None
    if init != "keep" and like is None:
        raise InvalidInputError(
            "base: shapes do not say how the base is initialised.\n"
            "  To fix: give a base model, or init_like=(small, large): two tiny instances; or init='keep'."
        )
    return base


def _pair(
    captured: CapturedGraph, dag: LayerDag, base: Instance | Shapes | None, wanted: str, shapes: Shapes | None
) -> WidthGrowth:
    """How dims grow from the base, whose graph is compared with the model's and never run.

    An export with fixed sizes takes half the time. Where it leaves out ops that open sizes need, another is made.
    """
    if base is None or isinstance(base, Mapping):
        return measure_growth(captured, dag, None, shapes)
    built = _build("base", base)
    _refuse_transformed("base", built)
    method = captured.method if wanted == "auto" else wanted

    def paired(sizes: OpenSizes) -> WidthGrowth:
        args, kwargs = captured.args, captured.kwargs
        graph = capture_model(built, args, kwargs, method=method, verify=False, modes=("train",), sizes=sizes)
        return measure_growth(captured, dag, graph)

    if method == "export":
        with suppress(PairingError, CaptureError):  # raised again below, unless fixed sizes are the cause
            return paired("fixed")
    return paired("free")


def _refuse_transformed(of: str, model: nn.Module) -> None:
    if has_hooks(model):
        raise InvalidInputError(
            f"{of} was transformed in place before: its hooks multiply, and would count twice.\n"
            f"  To fix: result.fold() of the earlier transform, or build the model anew."
        )
    if isinstance(model, EmittedModule) and scale_nodes(model.graph):
        raise InvalidInputError(
            f"{of} was transformed before: its graph has {len(scale_nodes(model.graph))} scale nodes, which would "
            f"count twice.\n  To fix: transform the original model."
        )


def _alignments(
    option: AlignmentOption, dag: LayerDag, decided: Mapping[str, ParameterExponents]
) -> dict[str, Alignments]:
    """(alpha, omega, u) of every layer node."""

    def pair(value: str | Sequence[float]) -> tuple[Alignments, Alignments]:
        if isinstance(value, str):
            return alignment_preset(value)
        numbers = tuple(float(x) for x in value)
        if len(numbers) != 3 or not all(abs(x) < float("inf") for x in numbers):
            raise InvalidInputError(f"alignment: expected a preset or finite (alpha, omega, u), got {value!r}.")
        return Alignments(*numbers), Alignments(*numbers)

    layers = dag.layers()
    if isinstance(option, Mapping):
        matched = match_patterns("alignment", option, [kind.parameter for _, kind in layers])
        of_parameter = {name: pair(value) for name, value in matched.items()}
        default = pair("full")
    else:
        of_parameter, default = {}, pair(option)
    found = {}
    for node, kind in layers:
        inner, readout = of_parameter.get(kind.parameter, default)
        found[node] = readout if decided[kind.parameter].role == "readout" else inner
    return found


def _own_init(
    captured: CapturedGraph, setting: FixedExponents, like: tuple[Instance, Instance] | None
) -> dict[str, OwnInit] | None:
    """How the model's own init scales; None without a base, and where there are no weights to read it off."""
    if not setting.widths.has_base:
        return None
    ours, theirs = dict(captured.model.named_parameters()), setting.widths.base_parameters
    if like is not None:
        small, large = (dict(_build("init_like", instance).named_parameters()) for instance in like)
        return carried_own_init((small, large), theirs, setting.widths, setting.fan_in_growth())
    if any(p.is_meta for p in (*ours.values(), *theirs.values())):
        return None
    return measure_own_init(ours, theirs, setting.widths, setting.fan_in_growth())


def _annotated(dag: LayerDag, solved: SolvedDag, plan: Mapping[str, ParameterPlan]) -> nx.DiGraph:
    """The DAG with what was found on its nodes."""
    graph = dag.to_networkx()
    for node, data in graph.nodes.items():
        data["s"], data["r"] = solved.s[node], solved.r.get(node)
        data["role"] = plan[data["parameter"]].role if data["parameter"] else data["kind"].name
    return graph


def _header(
    captured: CapturedGraph,
    growth: WidthGrowth,
    parametrization: str,
    families: Mapping[str, OptimizerFamily],
    alignment: AlignmentOption,
    options: Options,
    setting: FixedExponents,
    depth: DepthScaling,
    solved: SolvedDag,
) -> dict[str, Any]:
    return {
        "model": type(captured.model).__name__,
        "captured": captured.method,
        "scale": growth.scale,
        "has_base": growth.has_base,
        "parametrization": parametrization,
        "optimizer": ", ".join(dict.fromkeys(each.name for each in families.values())),
        "alignment": alignment if isinstance(alignment, str) else "given",
        "scales": options.scales,
        "init": options.init,
        "attention": {node: float(growth.scale**-a) for node, a in setting.attention.items()},
        "depth": {merge: float(each.ratio**-depth.a) for merge, each in depth.branches.items()},
        "rows": solved.rows,
        "columns": solved.columns,
    }
