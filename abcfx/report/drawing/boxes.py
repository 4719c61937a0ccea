"""What is drawn as one box: the DAG nodes of one module without submodules, or of one op, with their parameters."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx

from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Norm

if TYPE_CHECKING:
    from abcfx.transformed import Transformed

SHORT = {"scaled_dot_product_attention": "attention"}
_COUNTED = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        name: of its first DAG node; unique.
        path: module path that it belongs to.
        label: what it is called within the model: the module path, or the op.
        role: role of its first weight; "vector" or "scalar" where it has none; "" without parameters.
        kinds: kinds of its DAG nodes, as they run.
        nodes: its DAG nodes.
        parameters: names, as in the spec.
        is_tied: whether an earlier box has its first weight too.
        is_output: whether the model returns its tensor.
        alike: what boxes must have in common to be drawn as one that is repeated.
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
    """Boxes as the model runs, and (tail, head) of the edges between them, by name; no edge leads backwards."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str], ...]


def make_diagram(result: Transformed) -> Diagram:
    """The boxes of a result's layer DAG."""
    dag, spec = result.outcome.dag, result.spec
    owner = _owners(dag)
    members: dict[str, list[str]] = {}
    for node in dag.order:
        members.setdefault(owner[node], []).append(node)
    shapes = {name: tuple(parameter.shape) for name, parameter in result.module.named_parameters()}
    boxes: list[Box] = []
    taken: set[str] = set()
    for nodes in members.values():
        boxes.append(_box(nodes, dag, spec, shapes, taken))
        taken.update(boxes[-1].parameters)
    name_of = {node: box.name for box in boxes for node in box.nodes}
    position = {box.name: i for i, box in enumerate(boxes)}
    edges = dict.fromkeys((name_of[tail], name_of[head]) for tail, head in dag.edges.edges)
    return Diagram(tuple(boxes), tuple(edge for edge in edges if position[edge[0]] < position[edge[1]]))


def _owners(dag: LayerDag) -> dict[str, str]:
    """DAG node -> the first node of its box."""
    paths = {node.name: node.path for node in dag.nodes}
    inner = {path.rpartition(".")[0] for path in paths.values()}
    inner |= {path[:i] for path in paths.values() for i in range(len(path)) if path[i] == "."}
    joined = nx.Graph()
    joined.add_nodes_from(dag.order)
    for node in dag.order:
        for after in dag.successors(node):
            same_module = paths[node] == paths[after] and paths[node] not in inner and paths[node]
            same_op = _op(node) == _op(after)
            is_own = isinstance(dag.kind(node), Vector) and node in dag.kind(after).vectors
            if same_module or same_op or is_own:
                joined.add_edge(node, after)
    position = {node: i for i, node in enumerate(dag.order)}
    owner = {}
    for component in nx.connected_components(joined):
        first = min(component, key=position.__getitem__)
        owner.update(dict.fromkeys(component, first))
    return owner


def _op(node: str) -> str:
    """An op that takes several DAG nodes, `sdpa`, `sdpa#2`, ..., is one."""
    return node.partition("#")[0]


def _box(
    nodes: list[str],
    dag: LayerDag,
    spec: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, Hashable],
    taken: set[str],
) -> Box:
    main = next((n for n in nodes if isinstance(dag.kind(n), Layer)), None)
    main = main or next((n for n in nodes if isinstance(dag.kind(n), Norm)), nodes[0])
    weights = [kind.parameter for n in nodes if isinstance(kind := dag.kind(n), Layer)]
    others = [name for n in nodes if (name := dag.node(n).parameter)]
    parameters = tuple(dict.fromkeys([*weights, *others]))
    first = (weights or parameters or ("",))[0]
    path = dag.node(main).path
    has_own_path = bool(parameters) and bool(path)
    op = _COUNTED.sub("", _op(main))
    label = path if has_own_path else first if parameters else SHORT.get(op, op.strip("_"))
    kinds = tuple(dag.kind(n).name for n in nodes)
    tails = [name.removeprefix(f"{path}.") for name in parameters]
    numbers = [(tail, shapes[name], _numbers(spec[name])) for tail, name in zip(tails, parameters, strict=True)]
    return Box(
        name=nodes[0],
        path=path,
        label=label,
        role=str(spec[first]["role"]) if first else "",
        kinds=kinds,
        nodes=tuple(nodes),
        parameters=parameters,
        is_tied=first in taken,
        is_output=any(n in dag.outputs for n in nodes),
        alike=(kinds, tuple(numbers)),
    )


def _numbers(row: Mapping[str, Any]) -> Hashable:
    """What two parameters must have in common, by which they are scaled in the same way."""
    use = tuple(row["a"].values()) if isinstance(row["a"], dict) else row["a"]
    rounded = tuple(f"{row[key]:.9g}" if isinstance(row[key], float) else row[key] for key in ("b", "c", "r", "lr"))
    return (row["role"], row["void"], row["optimizer"], tuple(f"{e:.9g}" for e in row["growth"]), use, rounded)
