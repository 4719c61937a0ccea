"""Which sizes differ between base and target although they do not grow with the width.

A vocabulary padded to a multiple of 64, two classes more, a longer position table: such a size differs, and a role must
not follow from that. Only dims that lie between layers grow with the width by construction. The size of another dim,
of inputs, outputs, rows that are looked up, kernels, grows only if the same growth is found between layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from abcfx.dag.layer_dag import LayerDag
from abcfx.pairing.widths import beside_layers
from abcfx.rules.extents import Dim, ParameterDim

SizeChange = tuple[int, int]
"""Size of a dim in the base and in the target."""


def fixed_sizes(
    dag: LayerDag, sizes: Mapping[str, tuple[SizeChange, ...]]
) -> tuple[frozenset[SizeChange], tuple[str, ...]]:
    """Find the sizes that differ between a model and its smaller base although they do not grow with the width.

    Examples are a vocabulary that was padded, or a position table that is longer.

    Args:
        dag: the layer DAG of the target.
        sizes: (size in the base, size in the target) of every dim of every parameter.

    Returns:
        The pairs of sizes that count as no growth, and notes for the report on what was taken as what.
    """
    inner = {change for dim in _inner_dims(dag) if (change := _change(dim, sizes)) and change[0] != change[1]}
    ratios = {large / small for small, large in inner if small}
    rows = {change for dim in _row_dims(dag, sizes) if (change := _change(dim, sizes))}
    fixed, notes = set[SizeChange](), list[str]()
    for name, changes in sizes.items():
        for index, change in enumerate(changes):
            small, large = change
            if small == large or change in inner or not inner:
                continue
            where = f"dim {index} of {name}: {small} -> {large}"
            if change in rows or not small or not any(_is_near(large / small, ratio) for ratio in ratios):
                if change not in fixed:
                    notes.append(
                        f"{where} is taken as a change that has nothing to do with the width, so it does not grow"
                    )
                fixed.add(change)
            elif not any(f"{small} -> {large}" in note for note in notes):
                notes.append(
                    f"{where} is taken to grow with the width, since dims between layers grow by the same ratio"
                )
    return frozenset(fixed), tuple(notes)


def _is_near(ratio: float, other: float) -> bool:
    """Whether two ratios of sizes, each of a dim in a model over that in its smaller base, are equal up to 2 %."""
    return abs(ratio / other - 1) < 0.02


def _change(dim: Dim, sizes: Mapping[str, tuple[SizeChange, ...]]) -> SizeChange | None:
    """Return (size in the smaller base, size in the model) of a dim, by `sizes`; None for an activation's dim."""
    return sizes[dim.parameter][dim.index] if isinstance(dim, ParameterDim) else None


def _inner_dims(dag: LayerDag) -> Iterator[Dim]:
    """Yield those dims of layers' weights, fan_in or fan_out, on whose side another layer stands."""
    above, below = beside_layers(dag, upstream=True), beside_layers(dag, upstream=False)
    for node, layer in dag.layers():
        yield from layer.fan_in if above[node] else ()
        yield from layer.fan_out if below[node] else ()


def _row_dims(dag: LayerDag, sizes: Mapping[str, tuple[SizeChange, ...]]) -> Iterator[Dim]:
    """Yield the dims of tables along which rows are looked up: neither summed over nor passed on.

    `sizes` has an entry for each dim of every parameter.
    """
    for _, layer in dag.layers():
        if not layer.fan_in:
            passed_on = {dim.index for dim in layer.fan_out if isinstance(dim, ParameterDim)}
            for index in range(len(sizes[layer.parameter])):
                if index not in passed_on:
                    yield ParameterDim(layer.parameter, index)
