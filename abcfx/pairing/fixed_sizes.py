"""Which sizes differ between base and target although they do not grow with the width.

A vocabulary padded to a multiple of 64, two classes more, a longer position table, a wider kernel, more experts: such a
size differs, and a role must not follow from that. Only dims that lie between layers grow with the width by
construction. The size of another dim, of inputs, outputs, rows that are looked up, grows only if the same growth is
found between layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch.fx as fx
from torch import nn

from abcfx.dag.generators import generators
from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.routing import is_router
from abcfx.pairing.structure import beside_layers
from abcfx.rules import Layer, plain_name
from abcfx.rules.extents import Dim, ParameterDim, TensorDim
from abcfx.rules.kinds import Norm, Product, Softmax
from abcfx.rules.values import shape_of

SizeChange = tuple[int, int]
"""Size of a dim in the base and in the target."""

_SLOW = 0.25  # growth exponent below which a size counts as one that does not grow at all
_NOTED = 0.75  # growth exponent below which the report says that a size between layers grows more slowly
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SLIDING = {f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3)} | {"convolution"}


class _Verdict(Enum):
    """Whether a size grows with the width; the values are what the report says of it, None what needs no word."""

    GROWS = None
    ALIKE = "is taken to grow with the width, since dims between layers grow by the same ratio"
    SLOW = "lies between layers and is taken to grow with the width, if more slowly than others do"
    FIXED = "is taken as a change that has nothing to do with the width, so it does not grow"

    @property
    def is_fixed(self) -> bool:
        """Whether a size with this verdict counts as one that does not grow with the width."""
        return self is _Verdict.FIXED


@dataclass
class _Found:
    """What the layers of a model say about the sizes that differ between it and its smaller base.

    Attributes:
        inner: pairs of sizes of dims between layers -> how many dims have them.
        data: pairs of sizes of dims between layers where only frozen layers come before, or that are positions.
        counts: pairs of sizes of outputs that a softmax weighs, such as one output for each expert.
        weighing: pairs of sizes of outputs that weigh the results of other layers by another function.
        summed: pairs of sizes that layers sum over.
        rows: pairs of sizes of rows that are looked up, and of kernels.
        outer: pairs of sizes at the model's inputs or outputs -> the sides of layers on which they stand.
    """

    inner: Counter[SizeChange] = field(default_factory=Counter)
    data: set[SizeChange] = field(default_factory=set)
    counts: set[SizeChange] = field(default_factory=set)
    weighing: set[SizeChange] = field(default_factory=set)
    summed: set[SizeChange] = field(default_factory=set)
    rows: set[SizeChange] = field(default_factory=set)
    outer: Counter[SizeChange] = field(default_factory=Counter)


def fixed_sizes(
    dag: LayerDag,
    sizes: Mapping[str, tuple[SizeChange, ...]],
    frozen: Collection[str] = (),
    activations: Callable[[], Iterable[tuple[SizeChange, ...]]] = tuple,
) -> tuple[frozenset[SizeChange], tuple[str, ...]]:
    """Find the sizes that differ between a model and its smaller base although they do not grow with the width.

    Examples are a vocabulary that was padded, or a position table that is longer.

    Args:
        dag: the layer DAG of the target.
        sizes: (size in the base, size in the target) of every dim of every parameter.
        frozen: names of the parameters that do not train.
        activations: returns (size in the base, size in the target) of every dim of every activation.

    Returns:
        The pairs of sizes that count as no growth, and notes for the report on what was taken as what.
    """
    found = _look(dag, sizes, frozenset(frozen))
    if not found.inner:
        return frozenset(), ()
    main = _main_ratio(found)
    if any(small != large and not _is_near((small, large), main) for small, large in found.inner if small):
        found.data.update(_positions(activations(), main))
    verdicts = _verdicts(found, {change for changes in sizes.values() for change in changes})
    notes, said = list[str](), set[SizeChange]()
    for name, changes in sizes.items():
        for index, change in enumerate(changes):
            verdict = verdicts.get(change, _Verdict.GROWS)
            if verdict is not _Verdict.GROWS and change not in said:
                said.add(change)
                notes.append(f"dim {index} of {name}: {change[0]} -> {change[1]} {verdict.value}")
    return frozenset(change for change, verdict in verdicts.items() if verdict.is_fixed), tuple(notes)


def _verdicts(found: _Found, changes: Collection[SizeChange]) -> dict[SizeChange, _Verdict]:
    """Decide for each pair of different sizes, in base and target, whether it grows with the width.

    Args:
        found: what the layers say about them.
        changes: all pairs of sizes of dims of parameters.
    """
    differing = {change for change in changes if change[0] != change[1]}
    main = _main_ratio(found)
    verdicts: dict[SizeChange, _Verdict] = {}
    for change in differing:
        if not change[0] or main == 1.0:
            verdicts[change] = _Verdict.FIXED
        elif change in found.inner:
            verdicts[change] = _between_layers(found, change, main)
    inner = [change for change, verdict in verdicts.items() if not verdict.is_fixed]
    for change in differing - verdicts.keys():
        is_alike = change not in found.rows and any(_is_near(change, large / small) for small, large in inner)
        is_small = found.outer[change] == 1 and all(change[0] < small and change[1] < large for small, large in inner)
        verdicts[change] = _Verdict.ALIKE if is_alike and not is_small else _Verdict.FIXED
    return verdicts


def _main_ratio(found: _Found) -> float:
    """Return the ratio of sizes, in the model to its smaller base, that most dims between layers have that differ.

    It is 1 if none differs. Numbers of experts do not count.
    """
    by_ratio = Counter[float]()
    for change, number in found.inner.items():
        if change[0] != change[1] and change[0] and (change in found.summed or change not in found.counts):
            by_ratio[change[1] / change[0]] += number
    return max(by_ratio, key=lambda ratio: (by_ratio[ratio], abs(math.log(ratio))), default=1.0)


def _positions(activations: Iterable[tuple[SizeChange, ...]], main: float) -> Iterator[SizeChange]:
    """Yield the sizes, in base and target, of dims of activations that have a dim beside it which grows as most do.

    Such are positions, of which each has a row of channels; layers that mix them sum over such a dim.

    Args:
        activations: (size in the base, size in the target) of every dim of every activation.
        main: the ratio by which most dims between layers grow.
    """
    for sizes in activations:
        if any(small and small != large and _is_near((small, large), main) for small, large in sizes):
            yield from (change for change in sizes if change[0] != change[1])


def _between_layers(found: _Found, change: SizeChange, main: float) -> _Verdict:
    """Decide whether a size that differs, of a dim between two layers, grows with the width.

    Args:
        found: what the layers say about sizes that differ.
        change: the size in the smaller base and in the model.
        main: the ratio of sizes that most dims between layers have.
    """
    growth = math.log(change[1] / change[0]) / math.log(main)
    if growth < _SLOW or (change in found.counts and change not in found.summed):
        return _Verdict.FIXED  # one output for each expert, and no layer sums over them
    if not _is_near(change, main) and (change in found.data or change in found.weighing - found.summed):
        return _Verdict.FIXED
    return _Verdict.SLOW if growth < _NOTED else _Verdict.GROWS


def _is_near(change: SizeChange, ratio: float) -> bool:
    """Whether the ratio of a size in a model to that in its smaller base is a given one, up to 2 %."""
    return abs(change[1] / change[0] / ratio - 1) < 0.02


def _change(dim: Dim, sizes: Mapping[str, tuple[SizeChange, ...]]) -> SizeChange | None:
    """Return (size in the smaller base, size in the model) of a dim, by `sizes`; None for an activation's dim."""
    return sizes[dim.parameter][dim.index] if isinstance(dim, ParameterDim) else None


def _look(dag: LayerDag, sizes: Mapping[str, tuple[SizeChange, ...]], frozen: frozenset[str]) -> _Found:
    """Look at the sides of all layers, and sort the sizes in base and target of their dims by where they stand.

    Args:
        dag: the layer DAG of the target, the graph of its layers and ops.
        sizes: (size in the base, size in the target) of every dim of every parameter.
        frozen: names of the parameters that do not train.
    """
    found, above, below = _Found(), beside_layers(dag, upstream=True), beside_layers(dag, upstream=False)
    weighing = generators(dag)
    for node, layer in dag.layers():
        kernel = _kernel(dag.node(node).fx_node, layer.parameter, len(sizes[layer.parameter]))
        fan_in = [change for dim in layer.fan_in if dim not in kernel and (change := _change(dim, sizes))]
        fan_out = [change for dim in layer.fan_out if (change := _change(dim, sizes))]
        found.rows.update(change for dim in kernel if (change := _change(dim, sizes)))
        found.rows.update(_rows(layer.parameter, layer.fan_in, layer.fan_out, sizes))
        found.summed.update(fan_in)
        for side, is_inner in ((fan_in, above[node]), (fan_out, below[node])):
            (found.inner if is_inner else found.outer).update(side)
        if above[node] and frozen and not _learns_before(dag, node, frozen):
            found.data.update(fan_in)
        if below[node] and any(small != large for small, large in fan_out):
            if layer.fan_in and _softmax_weighs(dag, node):
                found.counts.update(fan_out)
            elif node in weighing or (is_router(dag, node) and not _feeds_layer(dag, node)):
                found.weighing.update(fan_out)
    return found


def _softmax_weighs(dag: LayerDag, node: str) -> bool:
    """Whether a softmax over a layer's outputs follows it, as in a router, and no layer or product in between."""
    shape = shape_of(dag.node(node).fx_node)
    for reader in _readers(dag, node):
        kind = dag.kind(reader)
        if shape is not None and isinstance(kind, Softmax):
            over = [sizes[d.index] for d in kind.over if isinstance(d, TensorDim) and (sizes := shape_of(d.node))]
            if shape[-1] in over:
                return True
    return False


def _feeds_layer(dag: LayerDag, node: str) -> bool:
    """Whether another layer reads some of a layer's outputs before they weigh anything: a router's outputs only weigh.

    So it is where projections are fused of which one makes weights, as the steps in Mamba 2 are.
    """
    return any(isinstance(dag.kind(reader), Layer) for reader in _readers(dag, node))


def _readers(dag: LayerDag, node: str) -> Iterator[str]:
    """Yield all nodes that a node's output reaches through no layer, norm, product or softmax, and these themselves."""
    waiting, seen = list(dag.successors(node)), set[str]()
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            yield at
            if not isinstance(dag.kind(at), Layer | Norm | Product | Softmax):
                waiting.extend(dag.successors(at))


def _learns_before(dag: LayerDag, node: str, frozen: frozenset[str]) -> bool:
    """Whether a parameter that trains is among those that a layer's input is computed from."""
    parameters = {dag.node(each).parameter for each in dag.ancestors(node)} - {None, dag.node(node).parameter}
    return bool(parameters - frozen)


def _kernel(node: fx.Node, parameter: str, ndim: int) -> frozenset[ParameterDim]:
    """Return the dims of a convolution's weight that slide over positions; none for other layers.

    Args:
        node: the node of the traced graph that uses the weight.
        parameter: name of the weight.
        ndim: number of its dims.
    """
    if node.op == "call_module" and node.graph.owning_module is not None:
        slides = isinstance(node.graph.owning_module.get_submodule(str(node.target)), _CONVOLUTIONS)
    else:
        slides = plain_name(node.target) in _SLIDING
    return frozenset(ParameterDim(parameter, index) for index in range(2, ndim)) if slides else frozenset()


def _rows(
    parameter: str, fan_in: Collection[Dim], fan_out: Collection[Dim], sizes: Mapping[str, tuple[SizeChange, ...]]
) -> Iterator[SizeChange]:
    """Yield the sizes of a table along which rows are looked up: neither summed over nor passed on.

    Args:
        parameter: name of the table.
        fan_in: the dims that are summed over; there are none where rows are looked up.
        fan_out: the dims that the result has.
        sizes: (size in the base, size in the target) of every dim of every parameter.
    """
    passed_on = {dim.index for dim in fan_out if isinstance(dim, ParameterDim)}
    yield from (change for index, change in enumerate(sizes[parameter]) if not fan_in and index not in passed_on)
