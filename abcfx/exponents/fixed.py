"""The exponents that are fixed before the linear program, by parameter, and the sizes that follow from them by node."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.roles import WhyRole
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Layer, Number
from abcfx.rules.extents import DimPart, Extent, whole_dims
from abcfx.theory.optimizers import OptimizerFamily
from abcfx.theory.parametrizations import Alignments, PresetAlignments


class SegmentExponents(NamedTuple):
    """The exponents of some columns of a weight whose input is a concatenation; `ParameterExponents` has the others.

    Attributes:
        role: the role that these columns would have as a weight of their own.
        b: exponent of their init m^-b (m, the width ratio).
    """

    role: str
    b: float


@dataclass(frozen=True)
class ParameterExponents:
    """The exponents of one parameter that are decided before the linear program; all are of the width ratio m.

    Attributes:
        role: "embedding", "hidden", "readout", "vector", "scalar" or "plain".
        why: the reason for the role.
        e_in: fan_in, the dims that the layer sums over, grows like m^e_in.
        e_out: fan_out, the dims of the output, grows like m^e_out.
        a: exponent of the multiplier m^-a, by node of each use.
        b: exponent of the init m^-b.
        c: exponent of the learning rate where the user fixed it, else None.
        void: whether a norm divides every multiplier out again.
        learns: whether training changes the parameter.
        frozen: whether it requires no gradient: its values are data, and nothing multiplies it.
        grows: whether a dim of it grows with width.
        is_bias: whether it is the bias of a layer.
        own: the model itself multiplies this layer by m^-own.
        narrowing: of an inner layer, the share of its inputs that it has as outputs, at most 1, shrinks like
            m^-narrowing; 0 where a norm takes the size of the layer out again.
        normalised: whether forward divides the parameter by a norm of itself, so that it does not matter how large it
            is.
        keeps_init: whether its init stays what the model's own code makes it, since functions f with f(kx) != k f(x)
            read it.
        segments: for a weight whose input is a concatenation, the role and init of the columns at each node.
        rows: for a weight whose rows are several layers side by side (fused queries, keys and values), the rows that
            are narrow layers, with x: their init is ~ m^-(b + x).
    """

    role: str
    why: WhyRole
    e_in: float = 0.0
    e_out: float = 0.0
    a: dict[str, float] = field(default_factory=dict)
    b: float = 0.0
    c: float | None = None
    void: bool = False
    learns: bool = True
    frozen: bool = False
    grows: bool = True
    is_bias: bool = False
    own: float = 0.0
    narrowing: float = 0.0
    normalised: bool = False
    keeps_init: bool = False
    segments: Mapping[str, SegmentExponents] = field(default_factory=dict)
    rows: Mapping[DimPart, float] = field(default_factory=dict)

    @property
    def starts_smaller(self) -> bool:
        """Whether the layer starts with outputs that shrink with width, and learns outputs that do not."""
        return self.learns and (self.role == "readout" or self.narrowing > 0)

    def alignments(self, preset: PresetAlignments) -> Alignments:
        """Return the alignments (alpha, omega, u) that a preset gives to the layers that use the parameter."""
        return preset.of(self.role, self.narrowing / self.e_in if self.narrowing else 0.0)


class FixedExponents:
    """The exponents of a whole model that are fixed before the linear program.

    From them follows how large every tensor is at init: its RMS entry is ~ m^-s (m, the width ratio). The nodes of the
    layer DAG ask for all these to write their constraints.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponents of its dims.
        parameters: role, multiplier m^-a and init m^-b of each parameter.
        families: the optimizer family of each parameter.
        vectors_change: count biases, gains and other vectors among what changes.
        attention: exponent x of a factor m^-x on attention logits, by product node.
    """

    def __init__(
        self,
        dag: LayerDag,
        growth: WidthGrowth,
        parameters: Mapping[str, ParameterExponents],
        families: Mapping[str, OptimizerFamily],
        vectors_change: bool = False,
        attention: Mapping[str, float] | None = None,
    ) -> None:
        """Find s of each DAG node's output, ~ m^-s at init (m, the width ratio), and which outputs training changes.

        Args:
            dag: the layer DAG, a graph of the model's layers and other ops.
            growth: growth exponents of its dims.
            parameters: role, multiplier and init of each parameter.
            families: the optimizer family of each parameter.
            vectors_change: count biases, gains and other vectors among what changes.
            attention: exponent x of a factor m^-x on attention logits, by product node.
        """
        self.dag, self.widths, self.parameters, self.families = dag, growth, parameters, families
        self.attention = dict(attention or {})
        self._a = self.attention | {node: a for p in parameters.values() for node, a in p.a.items()}
        self._sizes: dict[str, float] = {}
        self._changing: set[str] = set()
        for node in dag.order:
            kind = dag.kind(node)
            self._sizes[node] = kind.size(node, self)
            moved = any(self.changes(source) for source in kind.sources)
            learns = not kind.sources and vectors_change and not isinstance(kind, Layer)
            if moved or learns or (isinstance(kind, Layer) and self.learns(kind.parameter)):
                self._changing.add(node)

    def growth(self, *dims: Extent) -> float:
        """Return x such that the product of these dims' sizes grows like m^x (m, the width ratio)."""
        return self.widths.dims(*dims)

    def number(self, number: Number) -> float:
        """Return x for a number in the graph that grows like m^x (m, the width ratio)."""
        return self.widths.number(number)

    def size(self, node: str | None) -> float:
        """Return s of a DAG node, whose output is ~ m^-s at init (m, the width ratio); 0 for a constant (None)."""
        return 0.0 if node is None else self._sizes[node]

    def trained_size(self, node: str | None) -> float:
        """Return s of a node's tensor, ~ m^-s, once layers that start smaller make outputs of order 1; 0 for None.

        A readout starts with outputs that shrink with m, the width ratio, and learns outputs of order 1.
        """
        return self.once_trained.size(node)

    @cached_property
    def once_trained(self) -> FixedExponents:
        """The same exponents, with the sizes of tensors once layers that start smaller make outputs of order 1."""
        other = copy(self)
        other._sizes = {}
        for node in self.dag.order:
            kind = self.dag.kind(node)
            size = kind.size(node, other)
            grows = isinstance(kind, Layer) and self.parameters[kind.parameter].starts_smaller
            other._sizes[node] = min(0.0, size) if grows else size
        return other

    def changes(self, node: str | None) -> bool:
        """Whether training changes the output of a DAG node; None stands for a constant, which it does not change."""
        return node in self._changing

    def a(self, node: str) -> float:
        """Return a of the whole multiplier m^-a (m, the width ratio) at a DAG node, the model's own factor included."""
        kind = self.dag.kind(node)
        own = self.number(kind.factor) if isinstance(kind, Layer) else 0.0
        return self._a.get(node, 0.0) - own

    def b(self, parameter: str) -> float:
        """Return b of a parameter whose standard deviation at init is m^-b (m, the width ratio)."""
        return self.parameters[parameter].b

    def init(self, node: str) -> float:
        """Return b of the weight at a layer node, which is ~ m^-b at init (m, the width ratio).

        For a node that stands for some columns of a parameter it is the b of these columns.
        """
        decided = self.parameters[self.dag.node(node).parameter or ""]
        return decided.segments[node].b if node in decided.segments else decided.b

    def learns(self, parameter: str) -> bool:
        """Whether training changes a parameter, given by its name."""
        return self.parameters[parameter].learns

    def trained(self, parameters: tuple[str, ...]) -> tuple[str, ...]:
        """Return these parameters' names if a factor can be multiplied into all of them; () if one is frozen."""
        return () if any(self.parameters[name].frozen for name in parameters) else parameters

    def family(self, parameter: str) -> OptimizerFamily:
        """Return the optimizer that trains a parameter, as its `OptimizerFamily` (how large its updates are)."""
        return self.families[parameter]

    def aligned(self, preset: PresetAlignments) -> dict[str, Alignments]:
        """Return the alignments (alpha, omega, u) that a preset gives to each layer node."""
        return {node: self.parameters[layer.parameter].alignments(preset) for node, layer in self.dag.layers()}

    def fan_in_growth(self) -> dict[str, float | None]:
        """Return e_in for each parameter: the fan_in of its layer grows like m^e_in (m, the width ratio).

        None stands for a parameter that no layer uses.
        """
        found: dict[str, float | None] = dict.fromkeys(self.parameters)
        for _, layer in self.dag.layers():
            for node in found.keys() & set(layer.vectors):
                found[node] = self.growth(*layer.fan_in)
            found[layer.parameter] = self.growth(*whole_dims(layer.fan_in))
        return found

    def with_vectors(self) -> FixedExponents:
        """Return a copy in which biases, gains and other vectors count among what training changes."""
        return FixedExponents(self.dag, self.widths, self.parameters, self.families, True, self.attention)

    def with_attention(self, attention: Mapping[str, float]) -> FixedExponents:
        """Return a copy of these exponents with factors m^-x (m, the width ratio) on attention logits.

        Args:
            attention: x for each attention product, by node.
        """
        return FixedExponents(self.dag, self.widths, self.parameters, self.families, attention=attention)
