"""Which node of a base's graph stands for which node of the target's: the two graphs are walked side by side."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Literal, NamedTuple

import torch
from torch import fx

from abcfx.capture import CapturedGraph
from abcfx.dag.queries import block_of
from abcfx.errors import PairingError
from abcfx.pairing.blocks import NO_BLOCKS, SAME_CODE, Blocks
from abcfx.pairing.moves import align, chain_above, is_move, keeps_order, shape_if_run, tensors_read
from abcfx.rules.values import shape_of
from abcfx.support.location import location, module_path

_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, type(None))
Part = Literal["before", "block", "between", "after"]


class Place(NamedTuple):
    """A part of a graph: inside one numbered block of a container, between blocks, behind the last, or before all."""

    part: Part
    container: str = ""
    number: str = ""


class Doing(NamedTuple):
    """The op that an fx node runs, in a form that is equal for nodes of two graphs that run the same op.

    Attributes:
        op: kind of the node, such as "call_module".
        target: the function, or path of the module, that is called.
        of_class: class of that module.
    """

    op: str
    target: object = ""
    of_class: str = ""

    def __str__(self) -> str:
        """Return the op that a graph node runs as text, for an error."""
        return f"{self.of_class} {self.target}" if self.of_class else f"{self.op} {self.target}".strip()


class PairedNodes(NamedTuple):
    """Which node of a base's graph stands for which node of the target's, the larger of the two models.

    Attributes:
        twins: the base's node for each node of the target.
        left_out: nodes of the target that move or repeat entries and that the base has not, with the shape that their
            result would have in the base; None where that is not known.
    """

    twins: dict[fx.Node, fx.Node]
    left_out: dict[fx.Node, tuple[int, ...] | None]

    def base_shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return the shape, in the base (the smaller model), of the result of a node; None where it is not recorded.

        Raises:
            PairingError: the base leaves the op out, and what its result would be there cannot be told.
        """
        if node in self.twins:
            return shape_of(self.twins[node])
        shape = self.left_out.get(node)
        if shape is None:
            raise PairingError(
                f"The base has no op for {location(node)}, and the sizes of its result there cannot be told.\n"
                f"  expected: the same ops in both; a base may leave out ops that change nothing.\n{SAME_CODE}"
            )
        return shape


def pair_graphs(target: CapturedGraph, base: CapturedGraph, blocks: Blocks = NO_BLOCKS) -> PairedNodes:
    """Return for each graph node of a model (target) the node of its smaller base that does the same work.

    Subgraphs of no_grad blocks are included.

    Args:
        target: the model that is analysed, with its graphs.
        base: the model that it is compared with, with its graphs.
        blocks: which block of the base stands for each block of the target, where their numbers differ.

    Raises:
        PairingError: the graphs are not of one architecture; names the first node that differs.
    """
    pairing = _Pairing(target, base, blocks)
    return PairedNodes(pairing.run(target.module.graph, base.module.graph), pairing.left_out)


class _Pairing:
    """A walk over the graphs of two models side by side, block by block where one model has more blocks."""

    def __init__(self, target: CapturedGraph, base: CapturedGraph, blocks: Blocks) -> None:
        """Keep the two models, target and base (a smaller instance), and which numbered blocks belong together."""
        self.target, self.base, self.blocks = target, base, blocks
        self.left_out: dict[fx.Node, tuple[int, ...] | None] = {}

    def run(self, our_graph: fx.Graph, their_graph: fx.Graph) -> dict[fx.Node, fx.Node]:
        """Return for each node of the target's graph the node that does the same work in its base, a smaller instance.

        Args:
            our_graph: the target's graph, or a subgraph of it.
            their_graph: that of the base.

        Raises:
            PairingError: the graphs are not of one architecture.
        """
        pairs: dict[fx.Node, fx.Node] = {}
        ours = self._parts(our_graph, {path: self.blocks.last_of(path)[0] for path in self.blocks.index})
        theirs = self._parts(their_graph, {path: self.blocks.last_of(path)[1] for path in self.blocks.index})
        for place, nodes in ours.items():
            if place.part == "between":
                others = self._between(place.container, nodes, theirs)
            elif place.part == "block":
                twin = self.blocks.index[place.container][place.number]
                others = theirs.get(place._replace(number=twin), [])
            else:
                others = theirs.get(place, [])
            pairs |= self._zip(nodes, others)
        for one, other in list(pairs.items()):
            inside = _region(one), _region(other)
            if inside[0] is not None and inside[1] is not None:
                pairs |= self.run(inside[0].graph, inside[1].graph)
        return pairs | self._numbers(pairs)

    def _numbers(self, pairs: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """Pair nodes of two models' graphs that compute numbers out of sizes, from the paired nodes that read them on.

        `pairs` has the base's node for each node of the target. Those that compute numbers are found by walking
        upstream. One of the two graphs may have constants in their place.
        """
        found: dict[fx.Node, fx.Node] = {}
        waiting = list(pairs.items())
        while waiting:
            one, other = waiting.pop()
            ours, theirs = one.all_input_nodes, other.all_input_nodes
            for x, y in zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ():
                if x not in pairs and x not in found and _is_number(x) and _is_number(y) and x.target == y.target:
                    found[x] = y
                    waiting.append((x, y))
        return found

    def _parts(self, graph: fx.Graph, last: Mapping[str, str]) -> dict[Place, list[fx.Node]]:
        """Sort the nodes of a graph by the part of the model that they are in, such as a numbered block.

        Nodes that only compute sizes are left out, since a base may have constants in their place.

        Args:
            graph: the graph.
            last: for each container of blocks, the number of its last one.
        """
        found: dict[Place, list[fx.Node]] = {}
        after = Place("before")
        for node in graph.nodes:
            if _is_number(node):
                continue
            block = self._block(node)
            if block is not None:
                if node.op != "get_attr":  # those may all stand in front
                    is_last = block.number == last[block.container]
                    after = Place("after" if is_last else "between", block.container)
                found.setdefault(block, []).append(node)
            else:
                place = Place("before") if node.op in ("placeholder", "get_attr") else after
                found.setdefault(place, []).append(node)
        return found

    def _between(self, container: str, ours: list[fx.Node], theirs: Mapping[Place, list[fx.Node]]) -> list[fx.Node]:
        """Return the nodes that the base's graph has between two blocks, as often as the target's has such nodes.

        Target and base are two instances of one model, the base the smaller one. A base with one block runs them partly
        behind that block and partly before it.

        Args:
            container: path of the module that holds the blocks.
            ours: the target's nodes between all of its blocks.
            theirs: the base's nodes by part of the model.
        """
        length = len(ours) // (self.blocks.counts[container][0] - 1)
        found = theirs.get(Place("between", container), [])
        behind, before = theirs.get(Place("after", container), []), theirs.get(Place("before"), [])
        wanted = [self._doing(self.target, node) for node in ours[:length]]
        for split in range(length, -1, -1) if not found else ():
            found = behind[:split] + before[len(before) - (length - split) :]
            if [self._doing(self.base, node) for node in found] == wanted:
                break
        return (found * -(-len(ours) // len(found)))[: len(ours)] if found else []

    def _block(self, node: fx.Node) -> Place | None:
        """Return the numbered block of the model that a graph node belongs to; None for a node outside of blocks."""
        path = str(node.target) if node.op in ("call_module", "get_attr") else module_path(node)
        block = block_of(path, self.blocks.index)
        return None if block is None else Place("block", block.container, block.number)

    def _zip(self, ours: list[fx.Node], theirs: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        """Pair graph nodes of a model (target) one by one, in order, with those of its smaller base.

        Ops that torch.export leaves out at fixed sizes may be missing in one of the two.

        Args:
            ours: nodes of the target.
            theirs: nodes of the base.

        Raises:
            PairingError: two nodes at the same place do not run the same op.
        """
        try:
            return self._one_by_one(ours, theirs)
        except PairingError as error:
            aligned = self._aligned(ours, theirs)
            if aligned is None:
                raise error
            return aligned

    def _one_by_one(self, ours: list[fx.Node], theirs: list[fx.Node]) -> dict[fx.Node, fx.Node]:
        """Pair graph nodes as `_zip` does, where both models run the same ops.

        Args:
            ours: nodes of the target.
            theirs: nodes of the base.

        Raises:
            PairingError: two nodes at the same place do not run the same op.
        """
        pairs: dict[fx.Node, fx.Node] = {}
        others = iter(theirs)
        other = next(others, None)
        for one in ours:
            wanted = self._doing(self.target, one, self.blocks)
            while other is not None and _is_alias(other) and not _is_alias(one):
                other = next(others, None)
            got = None if other is None else self._doing(self.base, other)
            if other is not None and wanted == got:
                pairs[one] = other
                other = next(others, None)
            elif _keeps_all(one) and one.all_input_nodes[0] in pairs:  # torch.export leaves it out at fixed sizes
                pairs[one] = pairs[one.all_input_nodes[0]]
            else:
                raise _differ(one, wanted, got, other)
        if other is not None:
            raise _differ(ours[-1] if ours else other, None, self._doing(self.base, other), other)
        return pairs

    def _aligned(self, ours: list[fx.Node], theirs: list[fx.Node]) -> dict[fx.Node, fx.Node] | None:
        """Pair graph nodes where one of two models moves or repeats entries once more than the other, its smaller base.

        All other ops have to be the same in the same order. They have to read the results of paired ops, perhaps moved;
        the moves between are aligned, and the shape that one which the base leaves out would have there is kept for
        `PairedNodes.left_out`.

        Args:
            ours: nodes of the target.
            theirs: nodes of the base.

        Returns:
            The pairs; None where the models differ in more than that.
        """
        working, others = (
            [n for n in nodes if not (is_move(n) or _is_size(n) or _is_constant(each, n))]
            for each, nodes in ((self.target, ours), (self.base, theirs))
        )
        if len(working) != len(others):
            return None
        pairs = dict(zip(working, others, strict=True))
        here, there = set(ours), set(theirs)
        for one, other in list(pairs.items()):
            read, read_there = tensors_read(one, _is_size), tensors_read(other, _is_size)
            if not self._run_alike(one, other) or len(read) != len(read_there):
                return None
            for x, y in zip(read, read_there, strict=True):
                (source, moves), (source_there, moves_there) = chain_above(x), chain_above(y)
                if source in pairs and source_there in there and pairs[source] is not source_there:
                    return None
                if _is_constant(self.target, source):
                    pairs[source] = source_there
                moves, moves_there = [n for n in moves if n in here], [n for n in moves_there if n in there]
                if not self._align(moves, moves_there, y, pairs):
                    return None
        return pairs

    def _align(self, ours: list[fx.Node], theirs: list[fx.Node], read: fx.Node, pairs: dict[fx.Node, fx.Node]) -> bool:
        """Pair the ops of two chains that move entries, and keep the shapes of those that the base leaves out.

        Return False if only one of the chains changes the order of dims.

        Args:
            ours: the chain in the graph of the target.
            theirs: the chain in the graph of its base, the smaller model.
            read: the node of the base at the end of its chain, which further ops read.
            pairs: the pairs so far; grows.
        """
        for one, other in align(ours, theirs, self._run_alike):
            pairs.setdefault(one, other)
        theirs_paired = set(pairs.values())
        if not all(n in theirs_paired or keeps_order(n, shape_of(n.all_input_nodes[0])) for n in theirs):
            return False
        for one in ours:
            if one in pairs or one in self.left_out:
                continue
            source = one.all_input_nodes[0]
            before = shape_of(pairs[source]) if source in pairs else self.left_out.get(source)
            if not keeps_order(one, before):
                return False
            at_end = shape_of(read) or ()
            is_end = one is ours[-1] and len(at_end) == len(shape_of(one) or ())
            self.left_out[one] = at_end if is_end else shape_if_run(one, before)
        return True

    def _run_alike(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether a graph node of a model (target) and one of its smaller base run the same op."""
        return self._doing(self.target, one, self.blocks) == self._doing(self.base, other)

    @staticmethod
    def _doing(captured: CapturedGraph, node: fx.Node, blocks: Blocks = NO_BLOCKS) -> Doing:
        """Return the op that a graph node runs; names of modules are those in the base (the smaller of two models)."""
        if node.op == "placeholder":
            return Doing("placeholder")
        if node.op == "call_module":
            of_class = type(captured.module.get_submodule(str(node.target))).__name__
            return Doing("call_module", blocks.twin(str(node.target)), of_class)
        if node.op == "get_attr":
            return Doing("get_attr", blocks.twin(str(node.target)))
        return Doing(node.op, str(getattr(node.target, "autograd_function", node.target)))


def _is_constant(captured: CapturedGraph, node: fx.Node) -> bool:
    """Whether a node reads a tensor made in the model's code, which a capture keeps beside parameters and buffers."""
    if node.op != "get_attr" or _region(node) is not None:
        return False
    owners = captured.model.named_parameters(), captured.model.named_buffers()
    return not any(str(node.target) == name for named in owners for name, _ in named)


def _keeps_all(node: fx.Node) -> bool:
    """Whether a node returns its input whole, as x[:, :] does; torch.export leaves such nodes out at fixed sizes."""
    if _is_alias(node):
        return True
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    value, source = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
    return isinstance(value, torch.Tensor) and isinstance(source, torch.Tensor) and value.ndim == source.ndim


def _is_alias(node: fx.Node) -> bool:
    """Whether a node is the alias (the same values as another tensor object) that torch.export writes for x[:, :]."""
    return node.target is torch.ops.aten.alias.default


def _differ(one: fx.Node, wanted: Doing | None, got: Doing | None, other: fx.Node | None) -> PairingError:
    """Return the error that the graphs of a model (target) and its smaller base differ at a node.

    Args:
        one: the node of the target's graph at which they do.
        wanted: what the target runs there; None for nothing.
        got: what the base runs there; None for nothing.
        other: the base's node, if there is one.
    """
    where = "" if other is None else f" at {location(other)}"
    return PairingError(
        f"Base and target are not one architecture: their graphs first differ at {location(one)}.\n"
        f"  target runs {wanted or 'nothing more'}\n  base runs   {got or 'nothing more'}{where}\n{SAME_CODE}"
    )


def _is_number(node: fx.Node) -> bool:
    """Whether a node reads the size of a tensor, computes with sizes, or asserts something about one."""
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    return node.op in ("call_function", "call_method") and isinstance(node.meta.get("val", node), _NUMBERS)


def _is_size(node: fx.Node) -> bool:
    """Whether a node returns a number or the shape of a tensor, out of which numbers are taken."""
    return _is_number(node) or (node.target is getattr and node.args[1:] == ("shape",))


def _region(node: fx.Node) -> fx.GraphModule | None:
    """Return the subgraph that a node runs, where it runs one (under no_grad or autocast); else None."""
    owner = node.graph.owning_module
    if node.op != "get_attr" or owner is None:
        return None
    held = attrgetter(str(node.target))(owner)
    return held if isinstance(held, fx.GraphModule) else None
