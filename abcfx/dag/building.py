"""Builds the layer DAG of a captured model: its graph is run on abstract tensors, and the outputs are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch.fx as fx

from abcfx.capture import CapturedGraph
from abcfx.capture.codegen import signature_of_graph
from abcfx.capture.options import Capture
from abcfx.capture.state import contents_preserved
from abcfx.capture.structure import output_paths
from abcfx.dag.arguments import tensors
from abcfx.dag.interpreter import Interpreter
from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.outputs import Outputs
from abcfx.rules import Value, Vector
from abcfx.rules.builder import DagBuilder
from abcfx.rules.extents import DimPart


def build_dag(
    captured: CapturedGraph,
    graph: fx.Graph | None = None,
    options: Capture = Capture(),
    segments: Mapping[str, tuple[DimPart, ...]] | None = None,
) -> LayerDag:
    """Build the layer DAG of a captured model, a graph of its layers, sums, norms and products, by the rules of ops.

    Args:
        captured: the model with its graphs.
        graph: the graph that is read; the train graph by default.
        options: what happens at an op without a rule, and which returned tensors are outputs.
        segments: for weights that are to count as several layers, since their input is a concatenation, the columns
            that each of the concatenated tensors meets.

    Raises:
        UnknownOpError: an op has no rule; names the op, the module, the source line and what to write.
        InvalidInputError: `options.outputs` matches nothing that the train graph returns.
    """
    module = captured.module
    names = {parameter: name for name, parameter in module.named_parameters()}
    builder = DagBuilder(names, segments)
    interpreter = Interpreter(module, builder, guesses_unknown=options.unknown == "report")
    # A rule that asks for a weight that torch computes, such as a spectral norm's, makes torch compute it once more.
    with contents_preserved(module.buffers()):
        returned = interpreter.run(graph or module.graph)
    values = _by_path(graph or module.graph, returned)
    everything = frozenset(value.node for _, value in values if value.node is not None)
    dag = _frozen(builder, everything, tuple(interpreter.notes))
    found = Outputs(dag, builder.shapes, values)
    # In eval mode a model may return other things: patterns that match something in train mode need not match there.
    chosen = found.matching(options.outputs, strict=graph is None or graph is module.graph)
    kept = chosen or found.default()
    notes = () if chosen else found.note(kept)
    return replace(_frozen(builder, found.nodes(kept), dag.notes + notes), output_paths=tuple(dict.fromkeys(kept)))


def _by_path(graph: fx.Graph, returned: object) -> list[tuple[str, Value]]:
    """Return abstract tensors (records of where tensors come from) for what a graph returns, each with its path.

    `returned` is what the graph returned when it was run on abstract tensors. The path is that in the model's output,
    such as "logits".
    """
    signature = signature_of_graph(graph)
    if signature is None or signature.output is None:
        return [(str(index), value) for index, value in enumerate(tensors(returned))]
    assert isinstance(returned, tuple)
    (flat,) = returned
    values: list[tuple[str, Value]] = []
    for path, leaf in zip(output_paths(signature.output), flat, strict=True):
        if isinstance(leaf, Value):
            values.append((path, leaf))
        else:  # a symbol may stand for a tuple of tensors, such as the state of an LSTM
            values += [(f"{path}.{index}", value) for index, value in enumerate(tensors(leaf))]
    return values


def _frozen(builder: DagBuilder, outputs: frozenset[str], notes: tuple[str, ...]) -> LayerDag:
    """Return the finished layer DAG, with only those nodes of the builder from which the outputs are computed.

    Args:
        builder: holds the nodes that the rules made.
        outputs: the nodes whose tensors the model returns.
        notes: sentences for the report.
    """
    nodes = [builder.nodes[name] for name in builder.above(*outputs)]
    pinned = frozenset(builder.pinned_parameters)
    marked = [
        replace(node, is_pinned=node.is_pinned or (isinstance(node.kind, Vector) and node.parameter in pinned))
        for node in nodes
    ]
    return LayerDag(tuple(marked), outputs, pinned, notes, concatenated=builder.concatenated)
