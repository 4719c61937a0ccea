"""The only stage that changes anything: scale nodes or hooks first, which may raise, then the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import nn

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag, build_dag
from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import FixedExponents
from abcfx.exponents.attention import attention_products
from abcfx.exponents.depth import DepthScaling, residual_branches
from abcfx.pairing.graphs import Blocks
from abcfx.pairing.widths import WidthGrowth
from abcfx.passes import PassError, ScaleInsertion, insert_scales, multiply_marks, scale_attention
from abcfx.plan.absorb import attention_left
from abcfx.plan.init import redraw_
from abcfx.plan.parameters import ParameterPlan
from abcfx.rewrite.folding import FeatureScale, Fold, hook_features, query_features, refuse_saving
from abcfx.rewrite.marks import marked_nodes
from abcfx.support.location import location


def apply_plan(
    captured: CapturedGraph,
    setting: FixedExponents,
    plan: Mapping[str, ParameterPlan],
    depth: DepthScaling,
    absorb: bool,
    inplace: bool,
    unknown: str,
) -> tuple[Fold, tuple[str, ...]]:
    """Put multipliers where they go and re-initialise the weights.

    Returns:
        How the trained model is folded, and notes for the report.

    Raises:
        InvalidInputError: a multiplier has no place; nothing has been changed then.
    """
    dag, module = setting.dag, captured.module
    marks = [node for graph in module.graphs for node in marked_nodes(graph)]
    if marks and (inplace or not setting.widths.has_base):
        raise InvalidInputError(
            f"abcfx.scaled at {location(marks[0])}: its multiplier is a node of the graph, in powers of the ratio of "
            f"widths.\n  To fix: transform(model, inputs, base=...), without inplace=True."
        )
    attention = attention_left(setting) if absorb else setting.attention
    dags = [dag]
    if module.eval_graph is not None:
        dags.append(build_dag(captured, module.eval_graph, unknown))
    scales = [scale for each in dags for scale in _scales(each, plan, setting.widths)]
    on_logits = [scale for each in dags for scale in _attention_scales(dag, each, attention, setting.widths)]
    branches = depth.left if absorb else depth.branches.keys()
    if inplace and branches:
        raise InvalidInputError(
            f"inplace=True: the factor of the residual branch at {sorted(branches)[0]} cannot be absorbed: what comes\n"
            f"  last in it is no weight or gain. To fix: use the module that transform returns, without inplace=True."
        )
    scales += [s for each in dags for s in _branch_scales(dag, each, depth, branches, setting.widths.blocks)]
    left = [*_without_place(plan), *(f"abcfx.scaled at {location(node)}" for node in marks)]
    left += [f"the factor of the branch at {merge}" for merge in depth.left]
    fold = Fold({name: row.fold for name, row in plan.items()}, left=left)
    notes: tuple[str, ...] = ()
    if inplace:
        notes = _hook(captured, dag, attention, setting.widths, fold)
    else:
        factors = attention_left(setting)
        fold.find_features = partial(_query_features, captured, dag, factors, setting.widths)
        try:
            scale_attention(module, on_logits)
        except PassError as error:
            raise InvalidInputError(
                f"head_dim grows, so that the scale of attention has to change, and it is inside one op:\n  {error}\n"
                f"  To fix: give example inputs and capture='export', which opens the op; or let the number of heads "
                f"grow."
            ) from error
        notes = insert_scales(module, scales).notes
        multiply_marks(module, marks, setting.widths.scale)
    _initialise(captured.model, plan)
    return fold, notes


def _initialise(model: nn.Module, plan: Mapping[str, ParameterPlan]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            init = plan[name].init
            if init.redraw and init.std is not None:
                redraw_(parameter, init.std)
            elif init.factor != 1.0:
                parameter.mul_(init.factor)


def _without_place(plan: Mapping[str, ParameterPlan]) -> list[str]:
    return [f"the multiplier of {node}" for row in plan.values() for node in row.left]


def _query_features(
    captured: CapturedGraph, dag: LayerDag, attention: Mapping[str, float], growth: WidthGrowth
) -> list[FeatureScale]:
    return [query_features(captured, dag, node, float(growth.scale**-a)) for node, a in attention.items()]


def _hook(
    captured: CapturedGraph, dag: LayerDag, attention: Mapping[str, float], growth: WidthGrowth, fold: Fold
) -> tuple[str, ...]:
    """On the model's own object hooks scale the queries of fused layers, and saving is refused until it is folded."""
    if fold.left:
        raise InvalidInputError(
            f"inplace=True: {fold.left[0]} cannot be absorbed: one parameter is used there and elsewhere with\n"
            f"  different multipliers, and no norm that could take one stands before it.\n"
            f"  To fix: use the module that transform returns, without inplace=True."
        )
    fold.features = _query_features(captured, dag, attention, growth)
    if not fold.features:
        return ()
    fold.hooks += [hook_features(captured.model, each) for each in fold.features]
    fold.hooks.append(refuse_saving(captured.model))
    where = ", ".join(each.owner for each in fold.features)
    return (f"hooks multiply the queries of fused layers ({where}): state_dict() is refused until result.fold()",)


def _scales(dag: LayerDag, plan: Mapping[str, ParameterPlan], growth: WidthGrowth) -> list[ScaleInsertion]:
    n = "m" if growth.has_base else "n"
    scales = []
    for node, layer in dag.layers():
        row = plan[layer.parameter]
        used = dag.node(node)
        formula = f"{n}^{-row.a[node]:g}"
        scales.append(ScaleInsertion(used.fx_node, used.operand, row.multiplier[node], node, formula))
    return scales


def _attention_scales(
    dag: LayerDag, of: LayerDag, attention: Mapping[str, float], growth: WidthGrowth
) -> list[ScaleInsertion]:
    """Factors on attention logits, put on the queries. Products have other names in the graph of the other mode."""
    if not attention:
        return []
    scales = []
    for node, twin in zip(attention_products(dag), attention_products(of), strict=True):
        if not (a := attention.get(node, 0.0)):
            continue
        product = of.node(twin)
        scales.append(
            ScaleInsertion(product.fx_node, product.operand, float(growth.scale**-a), f"{node} logits", f"m^{-a:g}")
        )
    return scales


def _branch_scales(
    dag: LayerDag, of: LayerDag, depth: DepthScaling, branches: Collection[str], blocks: Blocks
) -> list[ScaleInsertion]:
    """Factors on residual branches. Merges have other names in the graph of the other mode."""
    if not branches:
        return []
    scales = []
    twins = residual_branches(of, blocks).items()
    for (merge, here), (twin, there) in zip(residual_branches(dag, blocks).items(), twins, strict=True):
        if merge in branches:
            total = of.node(twin)
            factor, formula = float(here.ratio**-depth.a), f"{here.ratio:g}^{-depth.a:g}"
            scales.append(ScaleInsertion(total.fx_node, total.operands[there.node], factor, f"{merge} branch", formula))
    return scales
