"""What stands for what in two instances of one architecture: nodes, parameters, and blocks where one has more of them.

Blocks are numbered submodules ("layers.0", "layers.1", ...). Where base and target have different numbers of them, each
block of the target is paired with one of the base that has the same parameters, the last with the last if it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from abcfx.capture import CapturedGraph
from abcfx.errors import PairingError
from abcfx.support.location import location, module_path

_BEFORE, _AFTER, _BETWEEN = ": before", ": after", ": between"
_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))
_SAME_CODE = "  To fix: build `base` by the same code as the model, with the same options and only smaller widths."


@dataclass(frozen=True)
class Blocks:
    """Containers of numbered submodules of which the target has another number than the base.

    `index`: container -> block of the target -> block of the base. `counts`: container -> (target's, base's).
    """

    index: dict[str, dict[str, str]]
    counts: dict[str, tuple[int, int]]

    def twin(self, name: str) -> str:
        """The base's name for a module or parameter of the target."""
        parts, at = name.split("."), list[str]()
        for part in parts:
            renamed = self.index.get(".".join(at), {})
            at.append(renamed.get(part, part))
        return ".".join(at)

    def last_of(self, container: str) -> tuple[str, str]:
        """Last block of the target and of the base."""
        renamed = self.index[container]
        last = max(renamed, key=int)
        return last, renamed[last]

    @property
    def ratio(self) -> float:
        """Number of such blocks in the target over that in the base, all containers together."""
        ours, theirs = (sum(count[i] for count in self.counts.values()) for i in (0, 1))
        return ours / theirs if theirs else 1.0


NO_BLOCKS = Blocks({}, {})


def match_blocks(target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> Blocks:
    """Pair the blocks of two models by the names and ranks of their parameters. Raises PairingError without a pair."""
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
    """Container path -> block number -> the names in it with their ranks."""
    found: dict[str, dict[str, set[tuple[str, int]]]] = {}
    for name, parameter in parameters.items():
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                blocks = found.setdefault(".".join(parts[:i]), {})
                blocks.setdefault(part, set()).add((".".join(parts[i + 1 :]), parameter.ndim))
    return {path: {block: frozenset(names) for block, names in blocks.items()} for path, blocks in found.items()}


def _twin_block(
    container: str, block: str, ours: Mapping[str, frozenset[Any]], theirs: Mapping[str, frozenset[Any]]
) -> str:
    """The same number if that is alike, else the one at the same place of a repeating pattern, else the nearest."""
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
    """The base's tensor for each parameter of the target. Raises PairingError for one that has none of its rank."""
    blocks = blocks or match_blocks(target, base)
    pairs = {name: base.get(blocks.twin(name)) for name in target}
    left = [name for name in base if name not in {blocks.twin(name) for name in target}] if not blocks.index else []
    for name in [*target, *left]:
        one, other = target.get(name), pairs.get(name, base.get(name))
        if one is None or other is None or one.ndim != other.ndim:
            shapes = ["none" if tensor is None else str(tuple(tensor.shape)) for tensor in (one, other)]
            raise PairingError(
                f"Parameter {name!r} has shape {shapes[0]} in the target and {shapes[1]} in the base.\n{_SAME_CODE}"
            )
    return {name: tensor for name, tensor in pairs.items() if tensor is not None}


def pair_graphs(target: CapturedGraph, base: CapturedGraph, blocks: Blocks | None = None) -> dict[fx.Node, fx.Node]:
    """Target node -> base node. Raises PairingError that names the first node that differs."""
    return _Pairing(target, base, blocks or NO_BLOCKS).run(target.module.graph, base.module.graph)


class _Pairing:
    """Pairs graphs run by run: the whole graph, or block by block where the models differ in the number of blocks."""

    def __init__(self, target: CapturedGraph, base: CapturedGraph, blocks: Blocks) -> None:
        self.target, self.base, self.blocks = target, base, blocks

    def run(self, our_graph: fx.Graph, their_graph: fx.Graph) -> dict[fx.Node, fx.Node]:
        pairs: dict[fx.Node, fx.Node] = {}
        ours = self._parts(our_graph, {path: self.blocks.last_of(path)[0] for path in self.blocks.index})
        theirs = self._parts(their_graph, {path: self.blocks.last_of(path)[1] for path in self.blocks.index})
        for place, nodes in ours.items():
            if place.endswith(_BETWEEN):
                others = self._between(place.removesuffix(_BETWEEN), nodes, theirs)
            else:
                others = theirs.get(place if place.endswith((_AFTER, _BEFORE)) else self.blocks.twin(place), [])
            pairs |= self._zip(nodes, others)
        for one, other in list(pairs.items()):
            inside = _region(one), _region(other)
            if inside[0] is not None and inside[1] is not None:
                pairs |= self.run(inside[0].graph, inside[1].graph)
        return pairs

    def _parts(self, graph: fx.Graph, last: Mapping[str, str]) -> dict[str, list[fx.Node]]:
        """Nodes by block, in order; what stands between blocks is told apart from what stands behind the last."""
        found: dict[str, list[fx.Node]] = {}
        after = _BEFORE
        for node in graph.nodes:
            if _is_number(node):  # the base's graph may have fixed sizes
                continue
            block = self._block(node)
            if block is not None:
                container, number = block
                if node.op != "get_attr":  # those may all stand in front
                    after = container + (_AFTER if number == last[container] else _BETWEEN)
                found.setdefault(f"{container}.{number}", []).append(node)
            else:
                place = _BEFORE if node.op in ("placeholder", "get_attr") else after
                found.setdefault(place, []).append(node)
        return found

    def _between(self, container: str, ours: list[fx.Node], theirs: Mapping[str, list[fx.Node]]) -> list[fx.Node]:
        """What the base does between two blocks, as often as the target does it.

        A base with one block does it behind that block and before it.
        """
        length = len(ours) // (self.blocks.counts[container][0] - 1)
        found = theirs.get(container + _BETWEEN, [])
        behind, before = theirs.get(container + _AFTER, []), theirs.get(_BEFORE, [])
        for split in range(length, -1, -1) if not found else ():
            found = behind[:split] + before[len(before) - (length - split) :]
            if [self._runs(self.base, n, None) for n in found] == [
                self._runs(self.target, n, None) for n in ours[:length]
            ]:
                break
        return (found * -(-len(ours) // len(found)))[: len(ours)] if found else []

    def _block(self, node: fx.Node) -> tuple[str, str] | None:
        """(container, number) of the block that a node belongs to."""
        path = str(node.target) if node.op in ("call_module", "get_attr") else module_path(node)
        for container in self.blocks.index:
            prefix = f"{container}." if container else ""
            if path.startswith(prefix):
                number = path[len(prefix) :].split(".")[0]
                if number.isdigit():
                    return container, number
        return None

    def _zip(self, ours: list[fx.Node], theirs: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        pairs: dict[fx.Node, fx.Node] = {}
        others = iter(theirs)
        other = next(others, None)
        for one in ours:
            wanted = self._runs(self.target, one, self.blocks)
            while other is not None and _is_alias(other) and not _is_alias(one):
                other = next(others, None)
            got = "nothing more" if other is None else self._runs(self.base, other, None)
            if other is not None and wanted == got:
                pairs[one] = other
                other = next(others, None)
            elif _keeps_all(one) and one.all_input_nodes[0] in pairs:  # fixed sizes make it nothing
                pairs[one] = pairs[one.all_input_nodes[0]]
            else:
                raise _differ(one, wanted, got, other)
        if other is not None:
            raise _differ(ours[-1] if ours else other, "nothing more", self._runs(self.base, other, None), other)
        return pairs

    @staticmethod
    def _runs(captured: CapturedGraph, node: fx.Node, blocks: Blocks | None) -> str:
        """What a node does, in words that are equal for two nodes that do the same."""
        if node.op == "call_module":
            kind = type(captured.module.get_submodule(str(node.target))).__name__
            return f"{kind} {blocks.twin(str(node.target)) if blocks else node.target}"
        target = getattr(node.target, "autograd_function", node.target)
        if node.op == "get_attr" and blocks:
            target = blocks.twin(str(target))
        return node.op if node.op == "placeholder" else f"{node.op} {target}"


def _keeps_all(node: fx.Node) -> bool:
    """Whether a node returns its input whole, as x[:, :] does, which torch.export leaves out where sizes are fixed."""
    if _is_alias(node):
        return True
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    value, source = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
    return isinstance(value, torch.Tensor) and isinstance(source, torch.Tensor) and value.ndim == source.ndim


def _is_alias(node: fx.Node) -> bool:
    """What torch.export writes for x[:, :] where sizes are fixed and x is needed as another tensor."""
    return node.target is torch.ops.aten.alias.default


def _differ(one: fx.Node, wanted: str, got: str, other: fx.Node | None) -> PairingError:
    where = "" if other is None else f" at {location(other)}"
    return PairingError(
        f"Base and target are not one architecture: their graphs first differ at {location(one)}.\n"
        f"  target runs {wanted}\n  base runs   {got}{where}\n{_SAME_CODE}"
    )


def _is_number(node: fx.Node) -> bool:
    """Whether a node reads a size or computes with sizes, or checks one."""
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    return node.op in ("call_function", "call_method") and isinstance(node.meta.get("val", node), _NUMBERS)


def _region(node: fx.Node) -> fx.GraphModule | None:
    """The graph that a node stands for, if it is a region of its own (no_grad, autocast)."""
    owner = node.graph.owning_module
    if node.op != "get_attr" or owner is None:
        return None
    held = attrgetter(str(node.target))(owner)
    return held if isinstance(held, fx.GraphModule) else None
