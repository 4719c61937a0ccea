"""Finds structures in a layer DAG: numbered blocks, residual branches, attention, parameters to scale."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx

from abcfx.dag.layer_dag import LayerDag
from abcfx.rules.extents import DimPart
from abcfx.rules.kinds import Layer, Merge, Norm, NumberFactor, Product, Reduce, Softmax, Vector

# -- numbered blocks


class BlockName(NamedTuple):
    """A dotted name cut at one of its numbers: `blocks.3.fc.weight` is ("blocks", "3", "fc.weight").

    Attributes:
        container: path of the module that holds the numbered blocks.
        number: number of the block.
        rest: the name within the block.
    """

    container: str
    number: str
    rest: str


def blocks_around(name: str) -> list[BlockName]:
    """Return the numbered blocks that a parameter or module, given by its name, lies in, outermost first."""
    parts = name.split(".")
    return [
        BlockName(".".join(parts[:i]), part, ".".join(parts[i + 1 :])) for i, part in enumerate(parts) if part.isdigit()
    ]


def block_of(name: str, containers: Collection[str]) -> BlockName | None:
    """Return the outermost block, of any of the containers, that holds a parameter or module; None if no block does."""
    return next((block for block in blocks_around(name) if block.container in containers), None)


def is_serial(dag: LayerDag, container: str) -> bool:
    """Whether a container's blocks run one after another, as transformer layers do and parallel experts do not."""
    blocks = {node: block_of(layer.parameter, (container,)) for node, layer in dag.layers()}
    inside = {node: block.number for node, block in blocks.items() if block is not None}
    return any(
        inside[above] != number for node, number in inside.items() for above in dag.ancestors(node) & inside.keys()
    )


# -- residual connections


class Skip(NamedTuple):
    """A skip connection: several paths lead from one DAG node to a merge (sum), past different numbers of layers.

    Attributes:
        start: the node from which the paths start.
        end: the merge at which they meet.
        most: largest number of layers on such a path.
        fewest: least number of layers on such a path.
    """

    start: str
    end: str
    most: int
    fewest: int


def find_skips(dag: LayerDag) -> list[Skip]:
    """Find skip connections: sums where paths meet that start at one DAG node and pass different numbers of layers."""
    main = dag.edges.subgraph([node.name for node in dag.nodes if not node.is_parametric])
    root = object()
    rooted = nx.DiGraph(main.edges)
    rooted.add_nodes_from(main)
    rooted.add_edges_from([(root, n) for n in main if not main.in_degree(n)])
    rooted.add_node(root)  # also where there is no other node
    dominators = nx.immediate_dominators(rooted, root)
    skips = []
    for end in dag.nodes_of(Merge):
        start = dominators[end]
        if start is root:
            continue
        most, fewest = _layers_between(dag, main, start, end)
        if fewest < most:
            skips.append(Skip(start, end, most, fewest))
    return skips


def _layers_between(dag: LayerDag, main: nx.DiGraph, start: str, end: str) -> tuple[int, int]:
    """Return the largest and least number of layers on paths from `start` to `end`; all paths to `end` pass `start`.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        main: the edges between its nodes, without vectors of parameters.
        start: name of the first node.
        end: name of the last node.
    """
    between, waiting = {end}, [end]
    while waiting:
        for node in main.predecessors(waiting.pop()):
            if node != start and node not in between:
                between.add(node)
                waiting.append(node)
    most, fewest = {start: 0}, {start: 0}
    for node in nx.topological_sort(main.subgraph(between)):
        own = isinstance(dag.kind(node), Layer)
        before = [p for p in main.predecessors(node) if p in most]
        most[node] = own + max(most[p] for p in before)
        fewest[node] = own + min(fewest[p] for p in before)
    return most[end], fewest[end]


@dataclass(frozen=True)
class Branch:
    """A residual branch of the layer DAG: the f of x + f(x).

    Attributes:
        node: the node f(x), which is added to x.
        inside: the nodes that only the branch computes, `node` among them.
        containers: paths of the modules whose numbered submodules its layers lie in.
    """

    node: str
    inside: frozenset[str]
    containers: frozenset[str]


def residual_branches(dag: LayerDag, containers: Collection[str]) -> dict[str, Branch]:
    """Find every residual branch, the f of x + f(x), inside the numbered blocks of a model, in the order they run.

    A residual connection inside of a branch is part of the branch.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        containers: paths of modules with numbered submodules, such as "blocks".

    Returns:
        A dict from the name of the merge (sum) that adds a branch to that branch.
    """
    found: dict[str, Branch] = {}
    earlier: dict[str, list[str]] = {}  # merge -> itself and the merges of the stream before it, the latest first
    for merge in dag.nodes_of(Merge):
        sources = [n for n in dag.kind(merge).inputs if n is not None]
        above = {n: dag.ancestors(n) for n in sources}
        pairs = [
            (stream, branch, root)
            for stream in sources
            for branch in sources
            if stream != branch and (root := _first(earlier.get(stream, [stream]), above[branch])) is not None
        ]
        if len(sources) != 2 or len(pairs) != 1:
            continue
        ((stream, branch, root),) = pairs
        inside = (above[branch] | {branch}) - dag.ancestors(root) - {root}
        if _lies_in_one_block(dag, inside, containers):
            homes = {block_of(k.parameter, containers) for n in inside if isinstance(k := dag.kind(n), Layer)}
            found[merge] = Branch(branch, frozenset(inside), frozenset(home.container for home in homes if home))
            earlier[merge] = [merge, *earlier.get(stream, [stream])]
    within = {merge for merge in found for other in found.values() if merge in other.inside}
    return {merge: branch for merge, branch in found.items() if merge not in within}


def _first(nodes: Sequence[str], among: Set[str]) -> str | None:
    """Return the first of several DAG nodes that is in a set; None if none is."""
    return next((node for node in nodes if node in among), None)


def _lies_in_one_block(dag: LayerDag, nodes: Collection[str], containers: Collection[str]) -> bool:
    """Whether all parameters of some DAG nodes belong to one numbered block of the model, such as blocks.3.

    `containers` are the paths of modules with numbered blocks, such as "blocks".
    """
    names = [kind.parameter for node in nodes if isinstance(kind := dag.kind(node), Layer | Vector)]
    blocks = [block_of(name, containers) for name in names]
    return bool(blocks) and None not in blocks and len({block.number for block in blocks if block}) == 1


def repeated_uses(dag: LayerDag) -> dict[str, list[str]]:
    """Return, for each parameter that is the weight of several layer nodes (tied, or called twice), these nodes.

    The columns of a weight that meet each of several concatenated inputs count as weights of their own.
    """
    uses: dict[tuple[str, DimPart | None], list[str]] = {}
    for node, layer in dag.layers():
        uses.setdefault((layer.parameter, layer.part), []).append(node)
    found: dict[str, list[str]] = {}
    for (name, _), nodes in uses.items():
        if len(nodes) > 1:
            found.setdefault(name, nodes)
    return found


# -- attention


def attention_products(dag: LayerDag) -> dict[str, list[str]]:
    """Find every product of two activations that feeds a softmax (query times key), in the order they run.

    Returns:
        Name of the product -> names of the nodes between it and the softmax.
    """
    found = {}
    for node in dag.nodes_of(Product):
        kind = dag.kind(node)
        if isinstance(kind, Product) and kind.contracted and None not in kind.inputs:
            after = _nodes_to_softmax(dag, node)
            if after is not None:
                found[node] = after
    return found


def _nodes_to_softmax(dag: LayerDag, node: str) -> list[str] | None:
    """Return the DAG nodes between a product and a softmax; None if a layer, a norm or a sum over a dim comes first.

    A norm that is written out contains such a sum.
    """
    came_from: dict[str, str] = {}
    waiting = [node]
    while waiting:
        here = waiting.pop()
        for after in dag.successors(here):
            kind = dag.kind(after)
            if isinstance(kind, Softmax):
                path = [here]
                while path[-1] != node:
                    path.append(came_from[path[-1]])
                return path[:-1]
            summed = isinstance(kind, Layer | Norm | Reduce) or (isinstance(kind, Product) and kind.contracted)
            if after not in came_from and not summed:
                came_from[after] = here
                waiting.append(after)
    return None


def query_targets(dag: LayerDag, node: str) -> tuple[str, ...]:
    """Return the parameters to multiply so that attention logits get a factor: those of the query, else of the key.

    The tuple is empty if both come out of one fused layer.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        node: the product of query and key.
    """
    sides = [absorbing_parameters(dag, side) for side in dag.kind(node).inputs if side is not None]
    return next((names for names in sides if names), ())


# -- which parameters take a factor


def absorbing_parameters(dag: LayerDag, node: str) -> tuple[str, ...]:
    """Return the parameters to multiply so that the output of this DAG node, and nothing else, gets a factor.

    Of a layer these are its weight and bias; of a norm, its gain and bias; of a product, those of one factor; of a sum,
    those of all summands. () if there are none.
    """
    if not _is_free(dag, node) or node in dag.outputs:
        return ()
    kind = dag.kind(node)
    if isinstance(kind, NumberFactor | Reduce):
        return absorbing_parameters(dag, kind.input)
    if isinstance(kind, Product):  # linear in each factor: a gain that is written out first
        vectors = [n for n in kind.sources if isinstance(dag.kind(n), Vector)]
        return next((names for n in (*vectors, *kind.sources) if (names := absorbing_parameters(dag, n))), ())
    if isinstance(kind, Merge):
        if names := _absorbing_segments(dag, kind):
            return names
        found = [absorbing_parameters(dag, source) for source in kind.sources]
        return tuple(name for names in found for name in names) if all(found) else ()
    nodes: tuple[str, ...] = ()
    if isinstance(kind, Layer):
        gains = dag.node(node).gains  # one factor of a product takes it, not all of them
        nodes = (
            () if kind.normalised or dag.node(node).is_curved else (node, *(n for n in kind.vectors if n not in gains))
        )
    elif isinstance(kind, Norm):
        nodes = kind.vectors if dag.node(node).gains else ()
    elif isinstance(kind, Vector):
        nodes = (node,)
    uses = dag.uses()
    names = tuple(name for n in nodes if (name := dag.node(n).parameter) is not None)
    are_free = all(len(uses[name]) == 1 for name in names) and all(_is_free(dag, n) for n in nodes)
    return names if len(names) == len(nodes) and are_free else ()


def _absorbing_segments(dag: LayerDag, merge: Merge) -> tuple[str, ...]:
    """Return weight and bias of a layer on concatenated tensors, of which a sum node is the result; else ().

    Such a layer is one layer node for each of the concatenated tensors, and `merge`, the sum of these.
    """
    uses, layers = (
        dag.uses(),
        [kind for node in merge.sources if isinstance(kind := dag.kind(node), Layer) and kind.part],
    )
    weights = {layer.parameter for layer in layers}
    if len(weights) != 1 or set(uses[layers[0].parameter]) != set(merge.sources):
        return ()
    biases = [name for layer in layers for name in layer.vectors]
    names = [parameter for name in biases if (parameter := dag.node(name).parameter) is not None]
    are_free = all(_is_free(dag, node) for node in (*merge.sources, *biases)) and all(len(uses[n]) == 1 for n in names)
    return (*weights, *names) if len(names) == len(biases) and are_free else ()


def _is_free(dag: LayerDag, node: str) -> bool:
    """Whether the output of a DAG node may be rescaled: one node reads it, once, and nothing fixes how large it is.

    A nonlinearity or a constant that is added would fix that.
    """
    is_pinned = dag.node(node).is_pinned or dag.node(node).parameter in dag.pinned_parameters
    readers = [source for after in dag.successors(node) for source in dag.kind(after).sources if source == node]
    return len(readers) == 1 and not is_pinned
