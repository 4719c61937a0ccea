"""Finds out which block of the small model each block of a deeper one is a copy of, and what new blocks must zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import absorbing_parameters, is_serial, residual_branches
from abcfx.errors import GrowthError
from abcfx.growing.fill.depth import BlockOrder, source_of
from abcfx.pairing.blocks import Blocks, match_blocks


def pair_blocks(small: nn.Module, large: nn.Module, order: BlockOrder) -> Blocks:
    """Find the block of the small model that each block of a deeper, large one is a copy of.

    A block is a numbered submodule, such as layers.3.

    Args:
        small: the small model.
        large: the large model.
        order: where new blocks go: "stack" (0 1 0 1), "interleave" (0 0 1 1) or "append" (0 1 1 1).

    Raises:
        GrowthError: the large model has fewer blocks.
    """
    found = match_blocks(dict(large.named_parameters()), dict(small.named_parameters()))
    index = {}
    for container, twins in found.index.items():
        after, before = found.counts[container]
        if after < before:
            raise GrowthError(
                f"{container} has {before} blocks in the small model and {after} in the large one.\n"
                f"  expected: at least as many.\n"
                f"  To fix: build the large model with {before} blocks or more."
            )
        numbers, bases = sorted(twins, key=int), sorted(set(_children(small, container)), key=int)
        mapped = {number: bases[source_of(i, before, after, order)] for i, number in enumerate(numbers)}
        alike = all(_names(large, container, n) == _names(small, container, b) for n, b in mapped.items())
        index[container] = mapped if alike else dict(twins)
    return replace(found, index=index)


def _children(model: nn.Module, container: str) -> list[str]:
    """Return the numbers of the blocks in a container such as "layers": names of submodules that are numbers."""
    return [name for name, _ in model.get_submodule(container).named_children() if name.isdigit()]


def _names(model: nn.Module, container: str, block: str) -> list[str]:
    """Return the names of the parameters in one block of a container such as "layers", without the block's own path."""
    return [name for name, _ in model.get_submodule(_path(container, block)).named_parameters()]


def _path(container: str, block: str) -> str:
    """Return the path of a block in a container, such as "layers.3"; the container "" is the model itself."""
    return f"{container}.{block}" if container else block


def refuse_parallel_blocks(blocks: Blocks, dag: LayerDag) -> None:
    """Raise an error if repeated submodules, of which the large model has more, stand side by side as experts do.

    Only blocks that run one after another can be added.

    Args:
        blocks: which block of the small model each block of the large one is a copy of.
        dag: the layer DAG of a large model that has as many blocks as the small one.

    Raises:
        GrowthError: the submodules of a container do not feed one another.
    """
    for container, (after, before) in sorted(blocks.counts.items()):
        prefix = f"{container}." if container else ""
        has_layers = any(layer.parameter.startswith(prefix) for _, layer in dag.layers())
        if has_layers and before > 1 and not is_serial(dag, container):
            raise GrowthError(
                f"{container} has {before} submodules in the small model and {after} in the large one, and none feeds "
                f"another.\n  expected: blocks one behind another; more experts side by side would not all be chosen.\n"
                f"  To fix: keep their number, or hold them in tensors (experts, ...), whose number grows with top-k."
            )


def new_blocks(blocks: Blocks) -> dict[str, str]:
    """Return, for each new block of the large model by path, the path of the old block that it is a copy of.

    Of the large model's blocks that copy one block of the small model, the first is the old one.
    """
    copies = {}
    for container, twins in blocks.index.items():
        first: dict[str, str] = {}
        for block, twin in twins.items():
            if first.setdefault(twin, block) != block:
                copies[_path(container, block)] = _path(container, first[twin])
    return copies


def adding_parameters(blocks: Blocks, dag: LayerDag) -> tuple[str, ...]:
    """Return the names of the parameters by which new blocks add to the residual stream.

    With these at zero, a new block adds nothing.

    Args:
        blocks: which block of the small model each block of the large one is a copy of.
        dag: the layer DAG of a large model that has as many blocks as the small one.
    """
    branches = residual_branches(dag, blocks.index)
    last = {name for branch in branches.values() for name in absorbing_parameters(dag, branch.node)}
    copies, found = new_blocks(blocks), []
    for container, twins in blocks.index.items():
        for block, twin in twins.items():
            prefix = f"{_path(container, twin)}."
            if (path := _path(container, block)) in copies:
                found += [f"{path}.{name.removeprefix(prefix)}" for name in last if name.startswith(prefix)]
    return tuple(sorted(found))


def is_within(name: str, blocks: Mapping[str, str]) -> bool:
    """Whether a parameter, by its name, belongs to one of the blocks with these paths."""
    return any(name.startswith(f"{path}.") for path in blocks)
