"""Applies a plan to a model: first scale nodes or hooks, which may be refused, then the init of the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx, nn

from abcfx.capture import CapturedGraph
from abcfx.capture.state_mark import refuse_marked
from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import attention_products, residual_branches
from abcfx.errors import InvalidInputError
from abcfx.exponents.depth import DepthScaling
from abcfx.exponents.fixed import FixedExponents
from abcfx.pairing.blocks import Blocks
from abcfx.pairing.pair import PairedModels
from abcfx.pairing.widths import WidthGrowth
from abcfx.passes import PassError, ScaleInsertion, insert_scales, multiply_marks, scale_attention
from abcfx.plan.absorb import attention_left
from abcfx.plan.options import ApplyMode
from abcfx.plan.spec import ParameterPlan
from abcfx.rewrite.column_hooks import can_hook_columns, columns_by_weight, hook_columns
from abcfx.rewrite.folding import Fold
from abcfx.rewrite.frames import GraphBefore
from abcfx.rewrite.hooks import can_hook, hook_features, refuse_saving
from abcfx.rewrite.marks import marked_nodes
from abcfx.rewrite.mode_weights import refuse_folding
from abcfx.rewrite.nesting import emit
from abcfx.rewrite.once import remember_transformed
from abcfx.rewrite.parameter_scales import parameter_scales, without_repeats
from abcfx.rewrite.query_features import FeatureScale, query_features
from abcfx.rules.builder import DagNode
from abcfx.support.location import location


@dataclass(frozen=True)
class Applied:
    """The result of applying a plan to a model.

    Attributes:
        fold: how factors are put into the trained weights.
        notes: sentences for the report.
        module: the module for the user.
    """

    fold: Fold
    notes: tuple[str, ...]
    module: nn.Module


def needs_nodes(
    pair: PairedModels, fixed: FixedExponents, plan: Mapping[str, ParameterPlan], depth: DepthScaling
) -> bool:
    """Whether a plan has multipliers that only nodes of a graph can hold, so that the user's own forward cannot run on.

    Args:
        pair: the model, with its graphs.
        fixed: factors on attention logits.
        plan: multiplier and init of every parameter.
        depth: factors on residual branches.
    """
    marks = any(marked_nodes(graph) for graph in pair.target_graph.module.graphs)
    factors = any(factor != 1.0 for row in plan.values() for factor in row.multiplier.values())
    factors = factors or any(each.fold != 1.0 for row in plan.values() for each in row.segments)
    return marks or factors or bool(_without_place(plan)) or bool(depth.left) or bool(attention_left(fixed))


def apply_plan(
    pair: PairedModels,
    fixed: FixedExponents,
    plan: Mapping[str, ParameterPlan],
    depth: DepthScaling,
    mode: ApplyMode,
    *,
    keeps_forward: bool,
) -> Applied:
    """Apply a plan to a model: put multipliers m^-a (m, the width ratio) in place, and initialise the weights.

    Args:
        pair: the model, with its graphs and layer DAGs of both modes.
        fixed: factors on attention logits, and the growth of dims.
        plan: multiplier and init of every parameter.
        depth: factors on residual branches, for a model with more blocks than its base.
        mode: where multipliers go: "insert" (nodes of the graph), "absorb" (weights and rates), "inplace" (the same, in
            the model object that was given) or "off" (there are none).
        keeps_forward: whether the result is a model of the user's class, whose own forward runs, and no graph.

    Raises:
        InvalidInputError: no node or parameter can hold some multiplier; nothing has been changed then.
    """
    module, inplace = pair.target_graph.module, mode == "inplace"
    if not inplace:
        refuse_folding(pair.target, plan)
    absorbs = mode in ("absorb", "inplace")
    marks = [node for graph in module.graphs for node in marked_nodes(graph)]
    if marks and (inplace or not fixed.widths.has_base):
        raise InvalidInputError(
            f"abcfx.scaled at {location(marks[0])}: its multiplier is a node of the graph, in powers of the ratio of "
            f"widths.\n  To fix: transform(model, inputs, base=...), without apply='inplace'."
        )
    branches = depth.left if absorbs else depth.branches.keys()
    if inplace and branches:
        raise InvalidInputError(
            f"apply='inplace': the factor of the residual branch at {sorted(branches)[0]} cannot be absorbed:\n"
            f"  the last op of the branch has no weight or gain.\n"
            f"  To fix: apply='absorb' or 'insert', and use result.module."
        )
    left = [*_without_place(plan), *(f"abcfx.scaled at {location(node)}" for node in marks)]
    left += [f"the factor of the branch at {merge}" for merge in depth.left]
    columns = [(each.part, each.fold) for row in plan.values() for each in row.segments if each.fold != 1.0]
    fold = Fold({name: row.fold for name, row in plan.items()}, columns=columns, left=left)
    before = {graph: GraphBefore(graph) for graph in module.graphs}
    notes: tuple[str, ...] = ()
    if inplace:
        notes = _hook(pair.target_graph, fixed, fold)
    elif not keeps_forward:
        fold.find_features = partial(_query_features, pair.target_graph, fixed, attention_left(fixed))
        notes = _insert(pair, fixed, plan, depth, attention_left(fixed) if absorbs else fixed.attention, branches)
        multiply_marks(module, marks, fixed.widths.width_ratio)
    _initialise(pair.target_graph.model, plan)
    emitted: nn.Module = pair.target
    if not keeps_forward:
        emitted, more = emit(pair.target_graph, before, plan)
        notes += more
    elif not inplace:
        emitted.register_load_state_dict_pre_hook(refuse_marked)
    if fold.hooks or any(row.init.factor != 1.0 or row.fold != 1.0 or row.init.columns for row in plan.values()):
        remember_transformed(emitted)
    return Applied(fold, notes, emitted)


def _insert(
    pair: PairedModels,
    fixed: FixedExponents,
    plan: Mapping[str, ParameterPlan],
    depth: DepthScaling,
    attention: Mapping[str, float],
    branches: Collection[str],
) -> tuple[str, ...]:
    """Insert scale nodes (multiplications by a constant) into the graphs of train and eval mode; return notes.

    Args:
        pair: the model, with its graphs and layer DAGs.
        fixed: the exponents, with the growth of dims.
        plan: the multiplier of every parameter.
        depth: factors on residual branches, for a model with more blocks than its base.
        attention: exponent a of the factor m^-a (m, the width ratio) on the logits of each attention product.
        branches: the merges whose residual branch gets a scale node.

    Raises:
        InvalidInputError: the logits of an attention lie inside one op, out of reach.
    """
    module, growth = pair.target_graph.module, fixed.widths
    dags = [dag for dag in (pair.target_dag, pair.eval_dag) if dag is not None]
    scales = [scale for dag in dags for scale in _scales(module, dag, plan, growth)]
    scales += [s for dag in dags for s in _branch_scales(pair.target_dag, dag, depth, branches, growth.blocks)]
    on_logits = [scale for dag in dags for scale in _attention_scales(pair.target_dag, dag, attention, growth)]
    try:
        scale_attention(module, on_logits)
    except PassError as error:
        raise InvalidInputError(
            f"head_dim grows, so that the scale of attention has to change, and it is inside one op:\n  {error}\n"
            f"  To fix: give example inputs and capture='export', which opens the op; or let the number of heads grow."
        ) from error
    return insert_scales(module, scales).notes


def _initialise(model: nn.Module, plan: Mapping[str, ParameterPlan]) -> None:
    """Draw the weights of a model anew, or multiply what is random in them, as planned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plan[name].init.apply_(parameter)


def _without_place(plan: Mapping[str, ParameterPlan]) -> list[str]:
    """Return, in words, the multipliers that no parameter can take, for the error of `fold()`, which needs that."""
    return [f"the multiplier of {node}" for row in plan.values() for node in row.left]


def _query_features(
    captured: CapturedGraph, fixed: FixedExponents, attention: Mapping[str, float]
) -> list[FeatureScale]:
    """Find the output features of fused layers that become queries, with the factor on each.

    Args:
        captured: the model with its graphs.
        fixed: the exponents decided before the linear program, with the layer DAG, a graph of the model's layers.
        attention: exponent a of the factor m^-a (m, the width ratio) on the logits of each attention product.
    """
    scale = fixed.widths.width_ratio
    return query_features(captured, fixed.dag, {node: float(scale**-a) for node, a in attention.items()})


def _hook(captured: CapturedGraph, fixed: FixedExponents, fold: Fold) -> tuple[str, ...]:
    """Scale the queries of fused layers by hooks on the model's own object; return notes for the report.

    The model cannot be saved until it is folded, which puts the factors into its weights.

    Args:
        captured: the model with its graphs.
        fixed: the exponents, with factors on attention logits.
        fold: the factors that turn the trained model into plain weights; the hooks are added to it.

    Raises:
        InvalidInputError: a multiplier cannot be absorbed.
    """
    if fold.left:
        raise InvalidInputError(
            f"apply='inplace': {fold.left[0]} cannot be absorbed: one parameter is used there and elsewhere with\n"
            f"  different multipliers, and no norm that could take one stands before it.\n"
            f"  To fix: apply='absorb' or 'insert', and use result.module."
        )
    fold.features = _query_features(captured, fixed, attention_left(fixed))
    columns = columns_by_weight(fold.columns)
    if not fold.features and not columns:
        return ()
    for each in fold.features:
        if not can_hook(captured, each):
            raise InvalidInputError(
                f"apply='inplace': the queries at {location(each.calls[0])} need a factor, and they are no\n"
                f"  module's output, which a hook could multiply.\n  To fix: apply='absorb', and use result.module."
            )
    for name in columns:
        if not can_hook_columns(captured, fixed.dag, name):
            raise InvalidInputError(
                f"apply='inplace': some columns of {name} meet an input that does not grow, beside one that does.\n"
                f"  It needs a factor, and no Linear or convolution is called where a hook could multiply it.\n"
                f"  To fix: apply='absorb' or 'insert', and use result.module."
            )
    fold.hooks += [hook_features(captured.model, each) for each in fold.features]
    fold.hooks += [hook_columns(captured.model, name, each) for name, each in columns.items()]
    fold.hooks.append(refuse_saving(captured.model))
    hooked = {
        "the queries of fused layers": [each.owner for each in fold.features],
        "the parts that do not grow in the inputs of layers": list(columns),
    }
    return tuple(
        f"hooks multiply {what} ({', '.join(where)}): state_dict() is refused until result.fold()"
        for what, where in hooked.items()
        if where
    )


def _scales(
    module: nn.Module, dag: LayerDag, plan: Mapping[str, ParameterPlan], growth: WidthGrowth
) -> list[ScaleInsertion]:
    """Return the scale nodes (multiplications by a constant) for the multipliers of all layers in a graph.

    A use of a weight in eval mode that train mode does not have gets the multiplier of the weight's other uses. A
    weight of eval mode alone, which nothing trains, gets none.

    Args:
        module: the module that owns the graph.
        dag: the layer DAG of the graph (train or eval).
        plan: the multiplier of every parameter.
        growth: has the width ratio m.

    Raises:
        InvalidInputError: the other uses of such a weight have different multipliers.
    """
    n = "m" if growth.has_base else "n"
    scales: list[ScaleInsertion] = []
    for node, layer in dag.layers():
        row, used = plan[layer.parameter], dag.node(node)
        uses = [node] if node in row.a else list(row.a)
        multipliers = {row.a[each]: row.multiplier[each] for each in uses}
        if len(multipliers) > 1:
            raise InvalidInputError(
                f"{layer.parameter} is used in eval mode at {location(used.fx_node)} as it is nowhere in train mode,\n"
                f"  where its uses have different multipliers: {', '.join(f'{n}^{-a:g}' for a in multipliers)}.\n"
                f"  To fix: use it in both modes alike, or apply='off'."
            )
        for a, factor in multipliers.items():
            formula = f"{n}^{-a:g}"
            if used.weight is None:
                joined = used.concatenation
                scales.append(ScaleInsertion(_reader(used), used.operand, factor, node, formula, through=joined))
            elif factor != 1.0:
                scales += parameter_scales(
                    module, used.weight, layer.parameter, ScaleInsertion(used.weight, None, factor, node, formula)
                )
    return without_repeats(scales)


def _reader(used: DagNode) -> fx.Node:
    """Return the op that reads the concatenation of which a layer node gets a part: its own, or a relu in between."""
    joined = used.concatenation
    if joined is None or joined in used.fx_node.all_input_nodes:
        return used.fx_node
    (reader,) = joined.users
    return reader


def _attention_scales(
    dag: LayerDag, of: LayerDag, attention: Mapping[str, float], growth: WidthGrowth
) -> list[ScaleInsertion]:
    """Return the scale nodes (multiplications by a constant) for attention logits in one graph, placed on the queries.

    Args:
        dag: the layer DAG of train mode, whose names `attention` has.
        of: the layer DAG of the graph (train or eval).
        attention: exponent a of the factor m^-a on the logits of each attention product.
        growth: has the width ratio m.
    """
    if not attention:
        return []
    scales = []
    for twin, nodes in _twins(dag, attention_products(dag), of, attention_products(of)).items():
        a = _common({node: attention.get(node, 0.0) for node in nodes}, of, twin, 0.0)
        if not a:
            continue
        product, node = of.node(twin), nodes[0]
        scales.append(
            ScaleInsertion(
                product.fx_node, product.operand, float(growth.width_ratio**-a), f"{node} logits", f"m^{-a:g}"
            )
        )
    return scales


def _branch_scales(
    dag: LayerDag, of: LayerDag, depth: DepthScaling, branches: Collection[str], blocks: Blocks
) -> list[ScaleInsertion]:
    """Return the scale nodes (multiplications by a constant) for residual branches in one graph.

    Args:
        dag: the layer DAG of train mode, whose names `branches` has.
        of: the layer DAG of the graph (train or eval).
        depth: factors on the branches.
        branches: the merges whose branch gets a scale node.
        blocks: which numbered blocks the model has, and which of the base stands for each.
    """
    if not branches:
        return []
    scales = []
    there = residual_branches(of, blocks.index)
    for twin, merges in _twins(dag, residual_branches(dag, blocks.index), of, there).items():
        ratio = _common({merge: depth.branches[merge] if merge in branches else 1.0 for merge in merges}, of, twin, 1.0)
        if ratio != 1.0:
            total = of.node(twin)
            factor, formula = float(ratio**-depth.a), f"{ratio:g}^{-depth.a:g}"
            label = f"{merges[0]} branch"
            scales.append(ScaleInsertion(total.fx_node, total.operands[there[twin].node], factor, label, formula))
    return scales


def _twins(dag: LayerDag, nodes: Iterable[str], of: LayerDag, others: Iterable[str]) -> dict[str, list[str]]:
    """Return for each DAG node of eval mode those of train mode that do the same work; one, where that is known.

    Nodes are matched by module, and in a module by order. Eval mode may run a module more or less often, since it may
    return other things; then all of the module's nodes may be meant, or, if train mode does not run it, none.

    Args:
        dag: the layer DAG of train mode.
        nodes: nodes of one kind in it, such as the products of attention.
        of: the layer DAG of the other graph.
        others: nodes of that kind in it.
    """
    at: dict[str, list[str]] = {}
    there: dict[str, list[str]] = {}
    for node in nodes:
        at.setdefault(dag.node(node).path, []).append(node)
    for other in others:
        there.setdefault(of.node(other).path, []).append(other)
    found: dict[str, list[str]] = {}
    for path, twins in there.items():
        here = at.get(path, [])
        is_known = len(here) == len(twins)
        found |= {twin: [here[index]] if is_known else here for index, twin in enumerate(twins)}
    return found


def _common(values: Mapping[str, float], of: LayerDag, twin: str, otherwise: float) -> float:
    """Return the number (such as a factor on a tensor) for a DAG node of eval mode, by nodes of train mode.

    `twin` is the node in `of`, the layer DAG of eval mode. `values` has the numbers of those nodes of train mode that
    do the same work; without any, it is `otherwise`.

    Raises:
        InvalidInputError: they have different values, so that it cannot be told which one is right in eval mode.
    """
    if len(set(values.values())) > 1:
        raise InvalidInputError(
            f"{location(of.node(twin).fx_node)} runs in eval mode another number of times than in train mode, where\n"
            f"  its factor is not the same each time.\n  To fix: run it in both modes alike, or apply='off'."
        )
    return next(iter(values.values()), otherwise)
