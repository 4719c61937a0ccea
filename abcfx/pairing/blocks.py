"""Which block and parameter of a base stands for which of the target, also where the target has more blocks.

Blocks are numbered submodules ("layers.0", "layers.1", ...). Where base and target have different numbers of them, each
block of the target is paired with one of the base that has the same parameters, the last with the last if it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from abcfx.dag.queries import blocks_around
from abcfx.errors import PairingError

SAME_CODE = "  To fix: build `base` by the same code as the model, with the same options and only smaller widths."


@dataclass(frozen=True)
class Blocks:
    """The pairing of repeated blocks (layers.0, layers.1, ...) of a model, the target, with those of its base.

    The base is a smaller instance of the model; it may have fewer blocks.

    Attributes:
        index: container of numbered submodules -> block of the target -> the block of the base that stands for it.
        counts: container -> (number of blocks in the target, in the base).
    """

    index: dict[str, dict[str, str]]
    counts: dict[str, tuple[int, int]]

    def twin(self, name: str) -> str:
        """Return the name in the base (the smaller model) of a module or parameter, given its name in the target."""
        if not self.index:
            return name
        parts, at = name.split("."), list[str]()
        for part in parts:
            renamed = self.index.get(".".join(at), {})
            at.append(renamed.get(part, part))
        return ".".join(at)

    def last_of(self, container: str) -> tuple[str, str]:
        """Return the numbers of the last block of a container such as "layers" in a model and in its smaller base."""
        renamed = self.index[container]
        last = max(renamed, key=int)
        return last, renamed[last]

    @property
    def ratio(self) -> float:
        """The number of repeated blocks in the model over that in its smaller base, all containers together.

        It is 1 for models without repeated blocks.
        """
        ours, theirs = (sum(count[i] for count in self.counts.values()) for i in (0, 1))
        return ours / theirs if theirs else 1.0


NO_BLOCKS = Blocks({}, {})


def match_blocks(target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> Blocks:
    """Pair the repeated blocks of two models by the names and ranks of their parameters.

    Args:
        target: parameters of the target by name.
        base: parameters of the base by name.

    Raises:
        PairingError: a block of the target is like none of the base.
    """
    index: dict[str, dict[str, str]] = {}
    counts: dict[str, tuple[int, int]] = {}
    if target.keys() == base.keys():
        return Blocks(index, counts)
    ours, theirs = _containers(target), _containers(base)
    for container in sorted(ours.keys() & theirs.keys(), key=len):
        mine, other = ours[container], theirs[container]
        inside_one = any(container.startswith(f"{outer}.") for outer in index)
        if inside_one or mine.keys() == other.keys():
            continue
        index[container] = {block: _twin_block(container, block, mine, other) for block in mine}
        counts[container] = len(mine), len(other)
    return Blocks(index, counts)


def _containers(parameters: Mapping[str, torch.Tensor]) -> dict[str, dict[str, frozenset[tuple[str, int]]]]:
    """Return container path -> block number -> (name within the block, number of dims) of the block's parameters."""
    found: dict[str, dict[str, set[tuple[str, int]]]] = {}
    for name, parameter in parameters.items():
        for block in blocks_around(name):
            found.setdefault(block.container, {}).setdefault(block.number, set()).add((block.rest, parameter.ndim))
    return {path: {block: frozenset(names) for block, names in blocks.items()} for path, blocks in found.items()}


def _twin_block(
    container: str,
    block: str,
    ours: Mapping[str, frozenset[tuple[str, int]]],
    theirs: Mapping[str, frozenset[tuple[str, int]]],
) -> str:
    """Choose for a block of a model (target) the block of its smaller base that stands for it.

    Of those with the same parameters that is the block of the same number, else that at the same place of a repeating
    pattern, else the nearest; for the last block, the last one.

    Args:
        container: path of the module that holds the blocks.
        block: number of the target's block.
        ours: (name, rank) of the parameters of each block of the target.
        theirs: (name, rank) of the parameters of each block of the base.

    Raises:
        PairingError: no block of the base has the same parameters.
    """
    alike = [other for other, names in theirs.items() if names == ours[block]]
    if not alike:
        raise PairingError(
            f"Block {container}.{block} of the target has parameters that no block of the base has "
            f"({', '.join(sorted(name for name, _ in ours[block])[:3])}, ...).\n"
            f"  To fix: give the base at least one block of each kind."
        )
    last, other_last = max(ours, key=int), max(theirs, key=int)
    wanted = [other_last] if block == last else [block, str(int(block) % len(theirs))]
    inner = [other for other in alike if other != other_last] or alike
    choices = alike if block == last else inner
    near = min(choices, key=lambda other: abs(int(other) - int(block)))
    return next((other for other in wanted if other in choices), near)


def pair_parameters(
    target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], blocks: Blocks | None = None
) -> dict[str, torch.Tensor]:
    """Return for each parameter of a model (target), by name, the tensor of it in the base, a smaller instance.

    Args:
        target: parameters of the target by name.
        base: parameters of the base by name.
        blocks: which block of the base stands for each block of the target; matched by names if not given.

    Raises:
        PairingError: a parameter has no partner of the same rank.
    """
    blocks = blocks or match_blocks(target, base)
    twins = {name: blocks.twin(name) for name in target}
    pairs = {name: base.get(twin) for name, twin in twins.items()}
    left = sorted(base.keys() - twins.values(), key=list(base).index) if not blocks.index else []
    for name in [*target, *left]:
        one, other = target.get(name), pairs.get(name, base.get(name))
        if one is None or other is None or one.ndim != other.ndim:
            shapes = ["none" if tensor is None else str(tuple(tensor.shape)) for tensor in (one, other)]
            raise PairingError(
                f"Parameter {name!r} has shape {shapes[0]} in the target and {shapes[1]} in the base.\n{SAME_CODE}"
            )
    return {name: tensor for name, tensor in pairs.items() if tensor is not None}
