"""Finds which tensors that a model returns are its outputs, of which a loss is made, and which are by-products.

By-products are key-value caches, states, attention maps, hidden states, auxiliary losses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.rules import Layer, Value
from abcfx.rules.extents import ParameterDim
from abcfx.rules.kinds import Merge, NumberFactor, Product, Softmax

# Fields of the output classes of Hugging Face, and the names that others give to the same things.
_BY_PRODUCTS = (
    "past_key_value*", "*key_value_cache*", "presents", "present", "kv_cache", "cache", "cache_params", "mems",
    "*attentions", "attn_weights", "attention_weights", "*hidden_states", "*router_logits", "*router_probs",
    "encoder_last_hidden_state", "*_model_output", "aux_loss", "z_loss", "rnn_state",
)  # fmt: skip


class Outputs:
    """The tensors that a model returns, by their paths, and the nodes of the layer DAG that they come from.

    Args:
        dag: the layer DAG of all that the model returns.
        shapes: shape of each parameter, by name.
        returned: (path, abstract tensor) of each returned tensor.
    """

    def __init__(
        self, dag: LayerDag, shapes: Mapping[str, tuple[int, ...]], returned: Iterable[tuple[str, Value]]
    ) -> None:
        """Keep those of the returned tensors that depend on weights, each with the DAG node that computes it.

        `returned` has (path, abstract tensor) of each, `shapes` the shape of each parameter by name.
        """
        self._dag, self._shapes = dag, shapes
        self._node_of: dict[str, str] = {}
        self._scalars: set[str] = set()
        for path, value in returned:
            if value.node is not None:
                self._node_of[path] = value.node
                if value.shape == ():
                    self._scalars.add(path)

    def matching(self, patterns: Iterable[str], strict: bool) -> list[str]:
        """Return the paths of returned tensors that patterns match, as a whole or from their start up to a dot.

        "logits" matches the path "logits", and "aux" matches "aux.loss".

        Args:
            patterns: paths or patterns of them.
            strict: whether a pattern that matches nothing is an error.

        Raises:
            InvalidInputError: a pattern matches nothing, which `strict` forbids; lists the paths that there are.
        """
        found: set[str] = set()
        for pattern in patterns:
            matched = [path for path in self._node_of if _matches(path, (pattern,))]
            if not matched and strict:
                known = ", ".join(map(repr, self._node_of))
                raise InvalidInputError(
                    f"Capture(outputs={pattern!r}) matches no tensor that the model returns and training changes.\n"
                    f"  expected: one of {known}, or a pattern such as 'logits' or '*.logits'.\n"
                    f"  To fix: Capture(outputs={next(iter(self._node_of), '')!r})"
                )
            found.update(matched)
        return [path for path in self._node_of if path in found]

    def default(self) -> list[str]:
        """Return the paths of those returned tensors that a loss is probably made of.

        Left out are by-products that are known by name, scalars, and tensors that go on into further layers or
        attention, unless they end in a narrow layer of their own. Nothing is left out on which a layer depends that no
        other output depends on.
        """
        kept = list(self._node_of)
        for path in self._node_of:
            is_by_product = path in self._scalars or any(_matches(part, _BY_PRODUCTS) for part in path.split("."))
            if is_by_product:
                kept = self._without(kept, path)
        for path, node in self._node_of.items():
            if path in kept and self._goes_on(node) and not self._is_own_readout(node):
                kept = self._without(kept, path)
        return kept

    def nodes(self, paths: Iterable[str]) -> frozenset[str]:
        """Return the nodes of the layer DAG that compute the returned tensors at these paths."""
        return frozenset(self._node_of[path] for path in paths)

    def note(self, kept: Collection[str]) -> tuple[str, ...]:
        """Return a sentence for the report on returned tensors that do not count as outputs; () if all do.

        `kept` are the paths of those that do.
        """
        left_out: dict[str, int] = {}
        for path in self._node_of:
            if path not in kept:
                top = path.partition(".")[0]
                left_out[top] = left_out.get(top, 0) + 1
        if not left_out:
            return ()
        taken = ", ".join(dict.fromkeys(kept))
        names = ", ".join(f"{name} ({n} tensors)" if n > 1 else name for name, n in left_out.items())
        first = next(iter(left_out))
        return (
            f"outputs, of which the loss is made: {taken}; not taken for outputs: {names}. "
            f"If the loss uses them as well: capture=Capture(outputs={(*dict.fromkeys(kept), first)!r})",
        )

    def _without(self, kept: list[str], path: str) -> list[str]:
        """Return the paths in `kept` without `path`, or with it if a layer would then reach no output."""
        rest = [each for each in kept if each != path]
        node, nodes = self._node_of[path], self.nodes(rest)
        above = nodes.union(*(self._dag.ancestors(n) for n in nodes)) if nodes else nodes
        layers = (n for n in (node, *self._dag.ancestors(node)) if self._dag.node(n).parameter is not None)
        return rest if rest and all(n in above for n in layers) else kept

    def _goes_on(self, node: str) -> bool:
        """Whether the model computes further layers, or products of activations, from a DAG node."""
        return any(isinstance(self._dag.kind(n), Layer | Product) for n in self._dag.descendants(node))

    def _is_own_readout(self, node: str) -> bool:
        """Whether a DAG node is the result of a narrow layer, as a predicted box, and no key, value or router."""
        dag, kind = self._dag, self._dag.kind(node)
        if not isinstance(kind, Layer) or dag.feeds_softmax(node):
            return False
        followers = dag.successors(node)
        if followers and all(_is_attention(dag, n) for n in followers):
            return False
        sizes = self._width(kind.fan_in), self._width(kind.fan_out)
        return sizes[0] is not None and sizes[1] is not None and sizes[1] < sizes[0]

    def _width(self, dims: Iterable[object]) -> int | None:
        """Return the product of the sizes of some dims; None if one of them is not a dim of a parameter."""
        sizes = [self._shapes[each.parameter][each.index] if isinstance(each, ParameterDim) else None for each in dims]
        known = [size for size in sizes if size is not None]
        return math.prod(known) if len(known) == len(sizes) else None


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the path of a returned tensor, or a part of it from its start up to a dot."""
    parts = path.split(".")
    heads = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(fnmatchcase(head, pattern) for head in heads for pattern in patterns)


def _is_attention(dag: LayerDag, node: str) -> bool:
    """Whether a product belongs to attention: query times key, or softmax of logits times values."""
    if not isinstance(dag.kind(node), Product):
        return False
    if any(isinstance(dag.kind(n), Softmax) for n in dag.predecessors(node)):
        return True
    ahead = dag.successors(node)
    while ahead and all(isinstance(dag.kind(n), NumberFactor | Merge) for n in ahead):
        ahead = tuple(after for n in ahead for after in dag.successors(n))
    return any(isinstance(dag.kind(n), Softmax) for n in ahead)
