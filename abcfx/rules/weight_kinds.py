"""The kind of DAG node for a weight that other parameters multiply entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from abcfx.lp.names import RowKind, RowLabel
from abcfx.rules.bounds import Bound, ExponentContext
from abcfx.rules.kinds import Layer


@dataclass(frozen=True)
class ScaledLayer(Layer):
    """A use of a weight W * s, a parameter W times a tensor s of as many entries, computed from other parameters.

    Attributes:
        cofactors: names of the DAG nodes that compute the tensors s.
    """

    cofactors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of this kind as users see it: "layer", as for any other layer."""
        return "layer"

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all DAG nodes that this node reads: input, vectors, and the cofactors that multiply its weight."""
        return (*super().sources, *self.cofactors)

    def _beside(self, context: ExponentContext) -> float:
        """Return s, where the tensors that multiply the weight entry by entry are ~ width^-s together.

        It is 0 if forward divides the whole weight by a norm of it.
        """
        return 0.0 if self.normalised else sum(context.size(node) for node in self.cofactors)

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the output (entries ~ width^-s): that of a plain layer, plus those of the weight's cofactors."""
        return super().size(node, context) + self._beside(context)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield bounds on r (the output changes by ~ width^-r) of a layer with weight W * s.

        They come from the change of W and, for each s, from that of s: (W * ds) x.
        """
        beside, x = self._beside(context), self.inputs[0]
        for bound in super().change(node, context):
            yield bound._replace(constant=bound.constant + beside)
        weight = context.a(node) + context.b(self.parameter) + context.size(x) - context.growth(*self.fan_in)
        for cofactor in self.cofactors:
            if context.changes(cofactor):
                others = beside - context.size(cofactor)
                yield Bound(RowLabel(RowKind.CHANGE, cofactor), (("r", cofactor),), weight + others)

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield (node, bound on its G; gradient ~ width^-G) for the input and for each factor of the weight."""
        beside, x = self._beside(context), self.inputs[0]
        for source, bound in super().gradient(node, context):
            yield source, bound._replace(constant=bound.constant + beside)
        weight = context.a(node) + context.b(self.parameter) + context.size(x)
        for cofactor in self.cofactors:
            others = beside - context.size(cofactor)
            yield cofactor, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), weight + others)

    def parameter_gradient(self, node: str, context: ExponentContext) -> Bound:
        """Return the upper bound on g of the weight (gradient ~ width^-g), with the exponents of its factors added."""
        bound = super().parameter_gradient(node, context)
        return bound._replace(constant=bound.constant + self._beside(context))
