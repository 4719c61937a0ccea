"""Finds the arguments of an op that its rule did not look at, so that no parameter drops out of the layer DAG."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from abcfx.dag.arguments import tensors
from abcfx.rules import Layer, Value, Vector
from abcfx.rules.builder import DagBuilder


def unread(builder: DagBuilder, nodes_before: int, given: Iterable[Value], returned: object) -> list[Value]:
    """Return those tensors among an op's arguments that the result of its rule does not depend on.

    A rule says how large the result of an op is; a tensor that it does not look at would drop out of the layer DAG.

    Args:
        builder: the nodes of the layer DAG (graph of layers and ops) after the rule has run.
        nodes_before: how many nodes there were before.
        given: the tensors among the op's arguments.
        returned: what the rule returned.
    """
    results = tensors(returned)
    if not results:
        return []
    reached = _reached(builder, nodes_before, [value.node for value in results if value.node is not None])
    kinds = (builder.kind(name) for name in reached)
    parameters = {kind.parameter for kind in kinds if isinstance(kind, Layer | Vector)}
    for value in results:
        parameters.update(value.gains, () if value.parameter is None else (value.parameter,))
    return [value for value in given if not value.is_constant and not _is_read(builder, value, reached, parameters)]


def _reached(builder: DagBuilder, nodes_before: int, results: list[str]) -> set[str]:
    """Return the DAG nodes of an op's results and all nodes that these read, as far as its rule has added them.

    Args:
        builder: the nodes of the layer DAG (graph of layers and ops) after the rule has run.
        nodes_before: how many nodes there were before.
        results: the nodes of the results.
    """
    new = set(islice(reversed(builder.nodes), len(builder.nodes) - nodes_before))
    reached, waiting = set(results), list(results)
    while waiting:
        name = waiting.pop()
        for source in builder.kind(name).sources if name in new else ():
            if source not in reached:
                reached.add(source)
                waiting.append(source)
    return reached


def _is_read(builder: DagBuilder, value: Value, reached: set[str], parameters: set[str]) -> bool:
    """Whether an op's result depends on a tensor among its arguments.

    Args:
        builder: the nodes of the layer DAG (graph of layers and ops).
        value: the tensor.
        reached: the DAG nodes that the result depends on.
        parameters: names of the parameters that the result depends on.
    """
    if value.node is None:
        return value.parameter in parameters
    return _is_made_of(builder, value.node, reached, parameters)


def _is_made_of(builder: DagBuilder, node: str, reached: set[str], parameters: set[str]) -> bool:
    """Whether an op's result depends on a DAG node (it is in `reached`), or on all that the node is computed from.

    The second is so for x / |x|, which is a norm of x: |x| itself drops out.

    Args:
        builder: the nodes of the layer DAG (graph of layers and ops).
        node: the node.
        reached: the DAG nodes that the result depends on.
        parameters: names of the parameters that the result depends on.
    """
    waiting, seen = [node], set(reached)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        kind = builder.kind(name)
        if isinstance(kind, Layer) or (isinstance(kind, Vector) and kind.parameter not in parameters):
            return False
        waiting += kind.sources
    return True
