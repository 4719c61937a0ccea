"""Boxes of the drawings: the DAG nodes of one module without submodules, or of one op, with their parameters."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import networkx as nx

from abcfx.dag.layer_dag import LayerDag
from abcfx.outcome import Outcome
from abcfx.plan.spec import ParameterPlan
from abcfx.report.parameter_table import multipliers_key
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Norm

SHORT = {"scaled_dot_product_attention": "attention"}
_COUNTED = re.compile(r"_\d+$")  # fx calls the third add of a graph add_2


@dataclass(frozen=True)
class Box:
    """One box of a drawing of the model: the DAG nodes of one module without submodules, or of one op.

    Attributes:
        name: name of its first DAG node; unique.
        path: module path that it belongs to.
        label: what it is called within the model: the module path, or the op.
        role: role of its first weight; "vector" or "scalar" if it has none; "" without parameters.
        kinds: kinds of its DAG nodes (layer, norm, ...), in the order in which they run.
        nodes: names of its DAG nodes.
        parameters: names of its parameters, as in the spec.
        is_tied: whether an earlier box has its first weight too.
        is_output: whether the model returns its tensor.
        alike: a key that is equal for boxes that may be drawn as one that is repeated.
    """

    name: str
    path: str
    label: str
    role: str
    kinds: tuple[str, ...]
    nodes: tuple[str, ...]
    parameters: tuple[str, ...]
    is_tied: bool
    is_output: bool
    alike: Hashable


@dataclass(frozen=True)
class Diagram:
    """A drawing of the model before its boxes have places: boxes in the order in which the model runs, and edges.

    Attributes:
        boxes: the boxes.
        edges: (tail, head) by the names of boxes; none leads backwards.
    """

    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str], ...]


def make_diagram(outcome: Outcome) -> Diagram:
    """Make the boxes of a drawing from the layer DAG (graph of layers and ops), and the edges between them."""
    dag = outcome.dag
    owner = _owners(dag)
    members: dict[str, list[str]] = {}
    for node in dag.order:
        members.setdefault(owner[node], []).append(node)
    shapes = {name: tuple(parameter.shape) for name, parameter in outcome.captured.model.named_parameters()}
    boxes: list[Box] = []
    taken: set[str] = set()
    for nodes in members.values():
        boxes.append(_box(nodes, dag, outcome.plan, shapes, taken))
        taken.update(boxes[-1].parameters)
    name_of = {node: box.name for box in boxes for node in box.nodes}
    position = {box.name: i for i, box in enumerate(boxes)}
    edges = dict.fromkeys((name_of[tail], name_of[head]) for tail, head in dag.edges.edges)
    return Diagram(tuple(boxes), tuple(edge for edge in edges if position[edge[0]] < position[edge[1]]))


def _owners(dag: LayerDag) -> dict[str, str]:
    """Return for each DAG node the first node of the box in which it is drawn."""
    paths = {node.name: node.path for node in dag.nodes}
    has_submodules = {path[:i] for path in paths.values() for i in range(len(path)) if path[i] == "."}
    has_submodules.add("")
    joined = nx.Graph()
    joined.add_nodes_from(dag.order)
    for node in dag.nodes:
        for after in map(dag.node, dag.successors(node.name)):
            is_same_module = node.path == after.path and node.path not in has_submodules
            is_own = isinstance(node.kind, Vector) and node.name in after.kind.vectors
            is_same_op = node.fx_node is after.fx_node and not isinstance(node.kind, Vector)
            if is_same_module or is_own or is_same_op:
                joined.add_edge(node.name, after.name)
    position = {node: i for i, node in enumerate(dag.order)}
    owner = {}
    for component in nx.connected_components(joined):
        first = min(component, key=position.__getitem__)
        owner.update(dict.fromkeys(component, first))
    return owner


def _box(
    nodes: list[str],
    dag: LayerDag,
    plan: Mapping[str, ParameterPlan],
    shapes: Mapping[str, Hashable],
    taken: set[str],
) -> Box:
    """Make the box in which some DAG nodes, of one module or op, are drawn together.

    Args:
        nodes: names of the DAG nodes.
        dag: the layer DAG, a graph of the model's layers and other ops.
        plan: the planned numbers of each parameter.
        shapes: the shape of each parameter.
        taken: parameters of earlier boxes.
    """
    main = next((n for n in nodes if isinstance(dag.kind(n), Layer)), None)
    main = main or next((n for n in nodes if isinstance(dag.kind(n), Norm)), nodes[0])
    weights = [kind.parameter for n in nodes if isinstance(kind := dag.kind(n), Layer)]
    others = [name for n in nodes if (name := dag.node(n).parameter)]
    parameters = tuple(dict.fromkeys([*weights, *others]))
    first = (weights or parameters or ("",))[0]
    path = dag.node(main).path
    has_own_path = bool(parameters) and bool(path)
    op = _COUNTED.sub("", dag.node(main).fx_node.name)
    label = path if has_own_path else first if parameters else SHORT.get(op, op.strip("_"))
    kinds = tuple(dag.kind(n).name for n in nodes)
    tails = [name.removeprefix(f"{path}.") for name in parameters]
    numbers = [(tail, shapes[name], _numbers(plan[name])) for tail, name in zip(tails, parameters, strict=True)]
    return Box(
        name=nodes[0],
        path=path,
        label=label,
        role=plan[first].role if first else "",
        kinds=kinds,
        nodes=tuple(nodes),
        parameters=parameters,
        is_tied=first in taken,
        is_output=any(n in dag.outputs for n in nodes),
        alike=(kinds, tuple(numbers)),
    )


def _numbers(plan: ParameterPlan) -> Hashable:
    """Return a key that is equal for parameters with the same role, exponents, multiplier and learning rate.

    The role is "embedding", "hidden", "readout" or the like.
    """
    numbers = (plan.b, plan.c, plan.r, plan.lr, *plan.growth)
    rounded = tuple(None if value is None else f"{value:.9g}" for value in numbers)
    return (plan.role, plan.void, plan.optimizer, multipliers_key(plan), rounded)
