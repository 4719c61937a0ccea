"""The kinds of node in a layer DAG, and what each does to sizes s, changes r and gradients G.

Notation. m is the scale of the growth. A tensor whose RMS entry is ~ m^-s has *size* s, whose change since init is
~ m^-r has *change* r, and whose gradient entries are ~ m^-G has *gradient* G. All are exponents of width.
Every formula bounds an exponent from above by `inputs + constant`; the true value is the minimum of its bounds.
Sources: Everett et al. 2024 (arXiv 2407.05872) for the chain; products, norms and forks: docs/how_it_works.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from abcfx.lp.names import RowKind, RowLabel
from abcfx.rules.extents import Dim, Extent, Number
from abcfx.theory.optimizers import OptimizerFamily


class Bound(NamedTuple):
    """One term of a minimum: `out <= sum(inputs) + constant - weight * alignment`.

    `inputs` are variables: ("r", node), ("G", node), ("g", parameter), or ("c", parameter). `label` names the term
    among those of its node.
    """

    label: RowLabel
    inputs: tuple[tuple[str, str], ...]
    constant: float
    alignment: str | None = None
    weight: float = 0.0


class ExponentContext(Protocol):
    """What a kind may ask while it writes its bounds: everything that is fixed before the LP is solved."""

    def growth(self, *dims: Extent) -> float:
        """Sum of the growth exponents of dims."""

    def number(self, number: Number) -> float:
        """Exponent of m in a Python number."""

    def size(self, node: str | None) -> float:
        """Size s of a node; 0 for a constant."""

    def changes(self, node: str | None) -> bool:
        """Whether a node has a change r at all."""

    def a(self, node: str) -> float:
        """Multiplier exponent of a layer (per use), or of attention logits."""

    def b(self, parameter: str) -> float:
        """Init exponent of a parameter."""

    def learns(self, parameter: str) -> bool:
        """False for a frozen parameter, and for one whose role is "plain"."""

    def family(self, parameter: str) -> OptimizerFamily: ...


@dataclass(frozen=True)
class Kind(ABC):
    """A node of the layer DAG.

    `inputs` are names of DAG nodes; None stands for a constant (data, a mask, a buffer). `vectors` are names of Vector
    nodes that are added to or multiplied onto the result: the bias of a layer, gain and bias of a norm.
    """

    inputs: tuple[str | None, ...]
    vectors: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        return (*(name for name in self.inputs if name is not None), *self.vectors)

    def changes(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        """All bounds on r of the output."""
        yield from self.change(node, known)
        for vector in self.vectors:
            if known.changes(vector):
                yield Bound(RowLabel(RowKind.CHANGE, vector), (("r", vector),), 0.0)

    def gradients(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """(input, bound on G of that input) for inputs and vectors."""
        yield from self.gradient(node, known)
        for vector in self.vectors:
            yield vector, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), 0.0)

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def size(self, node: str, known: ExponentContext) -> float:
        """Size s of the output at init."""

    @abstractmethod
    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        """Bounds on r of the output that come from its inputs and its own parameter."""

    @abstractmethod
    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """(input, bound on G of that input): what flows back."""


@dataclass(frozen=True)
class Layer(Kind):
    """A use of `parameter`: y = m^-a W x, contracted over the dims `fan_in` of the parameter (none for a lookup).

    `pieces`: how many layers it counts for in the objective (fused q, k, v: 3). `inner`: no scale node can be placed at
    it, since its input exists only inside an op; then a = 0, and init and rate carry the multiplier. `factor`: a number
    that the model itself multiplies the weight with. `fan_back`: what the backward product sums over where that is not
    all of `fan_out` (a convolution with groups). `normalised`: forward divides the weight by a norm of itself, so that
    its size is not the parameter's.
    """

    parameter: str
    fan_in: tuple[Dim, ...]
    fan_out: tuple[Dim, ...]
    pieces: int = 1
    inner: bool = False
    factor: Number = field(default_factory=Number)
    fan_back: tuple[Extent, ...] | None = None
    normalised: bool = False

    def size(self, node: str, known: ExponentContext) -> float:
        product = known.a(node) + known.b(self.parameter) + known.size(self.inputs[0]) - known.growth(*self.fan_in) / 2
        return min(product, 0.0) if self.vectors else product

    def _update(self, known: ExponentContext) -> tuple[tuple[tuple[str, str], ...], float]:
        """(variables, constant) of the exponent of one entry of the update."""
        rate = ("c", self.parameter)
        update = known.family(self.parameter).update
        if update == "gradient":
            return (rate, ("g", self.parameter)), 0.0
        return (rate,), known.b(self.parameter) if update == "relative" else 0.0

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        x, a, e_in = self.inputs[0], known.a(node), known.growth(*self.fan_in)
        moved = x is not None and known.changes(x)
        if known.learns(self.parameter) and (family := known.family(self.parameter)).update == "spectral":
            # an operator norm bounds dW x for every x, so there is no alignment to choose
            grown = family.spectral_growth(e_in, known.growth(*self.fan_out))
            yield Bound(RowLabel(RowKind.ALPHA), (("c", self.parameter),), a + known.size(x) - grown)
            if x is not None and moved:
                yield Bound(RowLabel(RowKind.U), (("c", self.parameter), ("r", x)), a - grown)
        elif known.learns(self.parameter):
            update, q = self._update(known)
            yield Bound(RowLabel(RowKind.ALPHA), update, a + q + known.size(x), "alpha", e_in)
            if x is not None and moved:
                yield Bound(RowLabel(RowKind.U), (*update, ("r", x)), a + q, "u", e_in)
        if x is not None and moved:
            yield Bound(RowLabel(RowKind.OMEGA), (("r", x),), a + known.b(self.parameter), "omega", e_in)

    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        back = self.fan_out if self.fan_back is None else self.fan_back
        x, a, e_out = self.inputs[0], known.a(node), known.growth(*back)
        if x is None:
            return
        yield (
            x,
            Bound(RowLabel(RowKind.INITIAL_GRADIENT, node), (("G", node),), a + known.b(self.parameter) - e_out / 2),
        )
        if known.learns(self.parameter) and known.family(self.parameter).update == "gradient":
            # g of this use alone: with g over all uses, a tied embedding would feed its own gradient
            update = (("G", node), ("G", node), ("c", self.parameter))
            yield x, Bound(RowLabel(RowKind.UPDATED_GRADIENT, node), update, 2 * a + known.size(x), "alpha", e_out)

    def parameter_gradient(self, node: str, known: ExponentContext) -> Bound:
        """Bound on g, the exponent of dL/dw."""
        return Bound(RowLabel(RowKind.WEIGHT_GRADIENT), (("G", node),), known.a(node) + known.size(self.inputs[0]))


@dataclass(frozen=True)
class Vector(Kind):
    """A parameter that is added or multiplied entry by entry: bias, gain, position table, temperature. a = b = 0."""

    parameter: str
    dims: tuple[Dim, ...] = ()

    def size(self, node: str, known: ExponentContext) -> float:
        return 0.0

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        yield from ()

    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        yield from ()


@dataclass(frozen=True)
class Merge(Kind):
    """Add, concatenate, select: the largest input dominates size and change."""

    def size(self, node: str, known: ExponentContext) -> float:
        return min(known.size(x) for x in self.inputs if x is not None)

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        for x in dict.fromkeys(self.inputs):
            if x is not None and known.changes(x):
                yield Bound(RowLabel(RowKind.INPUT, x), (("r", x),), 0.0)

    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        for x in dict.fromkeys(self.inputs):
            if x is not None:
                yield x, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), 0.0)


@dataclass(frozen=True)
class Product(Kind):
    """x times y, entry by entry or contracted over `contracted`: d(xy) = x dy + y dx + dx dy.

    `broadcast`: dims that x does not have and y has, and the other way round: a gate on all entries of a vector. Its
    gradient is a sum over them, of random signs at init and of one sign once it has been trained on.
    """

    contracted: tuple[Extent, ...] = ()
    broadcast: tuple[tuple[Extent, ...], tuple[Extent, ...]] = ((), ())

    def size(self, node: str, known: ExponentContext) -> float:
        x, y = self.inputs
        return known.size(x) + known.size(y) - known.growth(*self.contracted) / 2 + known.a(node)

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        x, y = self.inputs
        aligned = known.a(node) - known.growth(*self.contracted)
        if x is not None and known.changes(x):
            yield Bound(RowLabel(RowKind.CHANGE, x), (("r", x),), known.size(y) + aligned)
        if y is not None and known.changes(y):
            yield Bound(RowLabel(RowKind.CHANGE, y), (("r", y),), known.size(x) + aligned)
        if x is not None and y is not None and known.changes(x) and known.changes(y):
            yield Bound(RowLabel(RowKind.BOTH_CHANGES), (("r", x), ("r", y)), aligned)

    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        x, y = self.inputs
        for this, other, missing in ((x, y, self.broadcast[0]), (y, x, self.broadcast[1])):
            if this is not None:
                entry, summed = known.size(other) + known.a(node), known.growth(*missing)
                yield this, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), entry - summed / 2)
                if summed > 0:
                    yield this, Bound(RowLabel(RowKind.UPDATED_GRADIENT, node), (("G", node),), entry - summed)


@dataclass(frozen=True)
class Mix(Product):
    """Weights times x, where the weights are doubly stochastic: a convex combination, never larger than x is."""

    def size(self, node: str, known: ExponentContext) -> float:
        return known.size(self.inputs[1])

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        weights, x = self.inputs
        if x is not None and known.changes(x):
            yield Bound(RowLabel(RowKind.CHANGE, x), (("r", x),), 0.0)
        if weights is not None and known.changes(weights):
            moved = -known.growth(*self.contracted)
            yield Bound(RowLabel(RowKind.CHANGE, weights), (("r", weights),), known.size(x) + moved)


@dataclass(frozen=True)
class Unary(Kind):
    """y = f(x): size and change of x, shifted by constants."""

    @property
    def input(self) -> str:
        (x,) = self.inputs
        assert x is not None, "constants are folded before a DAG node is made"
        return x

    @abstractmethod
    def size(self, node: str, known: ExponentContext) -> float: ...

    @abstractmethod
    def shift(self, known: ExponentContext) -> float:
        """What is added to r of the input to give r of the output."""

    def gradient_shift(self, known: ExponentContext) -> float:
        """What is added to G of the output to give G of the input."""
        return self.shift(known)

    def change(self, node: str, known: ExponentContext) -> Iterator[Bound]:
        if known.changes(self.input):
            yield Bound(RowLabel(RowKind.INPUT, self.input), (("r", self.input),), self.shift(known))

    def gradient(self, node: str, known: ExponentContext) -> Iterator[tuple[str, Bound]]:
        yield self.input, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), self.gradient_shift(known))


@dataclass(frozen=True)
class Norm(Unary):
    """Layer, RMS, batch, group norm: the size becomes 0, so that the multiplier of a layer before it is void.

    A norm that divides by a sum over the dims `summed` of powers of entries, not by their mean, leaves entries of about
    size^(-1/power): 2 for an L2 norm; 1 for x / sum(x), as routers do with the weights of the chosen experts.
    """

    summed: tuple[Dim, ...] = ()
    power: float = 2.0

    def size(self, node: str, known: ExponentContext) -> float:
        return known.growth(*self.summed) / self.power

    def shift(self, known: ExponentContext) -> float:
        return self.size("", known) - known.size(self.input)


@dataclass(frozen=True)
class Pointwise(Unary):
    """A function with phi(0) != 0 (sigmoid, exp, cos): O(1) whatever comes in. Where phi(0) = 0, no node is made."""

    def size(self, node: str, known: ExponentContext) -> float:
        return min(0.0, known.size(self.input))

    def shift(self, known: ExponentContext) -> float:
        return 0.0


@dataclass(frozen=True)
class Power(Unary):
    """x ** exponent, homogeneous."""

    exponent: float

    def size(self, node: str, known: ExponentContext) -> float:
        return self.exponent * known.size(self.input)

    def shift(self, known: ExponentContext) -> float:
        return (self.exponent - 1) * known.size(self.input)


@dataclass(frozen=True)
class Softmax(Unary):
    """Softmax over one dim; over a growing dim each weight is ~ 1/size."""

    over: tuple[Dim, ...]

    def size(self, node: str, known: ExponentContext) -> float:
        return known.growth(*self.over)

    def shift(self, known: ExponentContext) -> float:
        return known.growth(*self.over)


@dataclass(frozen=True)
class NumberFactor(Unary):
    """Multiplication by a Python number that may change with width, as 1/sqrt(head_dim) does."""

    factor: Number

    def size(self, node: str, known: ExponentContext) -> float:
        return known.size(self.input) + self.shift(known)

    def shift(self, known: ExponentContext) -> float:
        return -known.number(self.factor)


@dataclass(frozen=True)
class Reduce(Unary):
    """Mean or sum over dims. Over a growing dim the entries are taken as aligned: the bound that always holds."""

    over: tuple[Dim, ...]
    mean: bool

    def size(self, node: str, known: ExponentContext) -> float:
        return known.size(self.input) + self.shift(known)

    def shift(self, known: ExponentContext) -> float:
        return 0.0 if self.mean else -known.growth(*self.over)

    def gradient_shift(self, known: ExponentContext) -> float:
        return known.growth(*self.over) if self.mean else 0.0
