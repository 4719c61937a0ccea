"""The kinds of node in a layer DAG, and what each does to sizes s, changes r and gradients G.

Notation: m is the width ratio. The RMS entry of a tensor is ~ m^-s, its change since init ~ m^-r, and the entries of
its gradient ~ m^-G; s is called its *size*, r its *change*, G its *gradient*. All three are exponents of width.
A formula bounds an exponent from above by `inputs + constant`; the exponent is the minimum of its bounds.

Sources: Everett et al. 2024 (arXiv 2407.05872) for a chain of layers; docs/how_it_works.md for products, norms, forks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from abcfx.lp.names import RowKind, RowLabel
from abcfx.rules.bounds import Bound, ExponentContext
from abcfx.rules.extents import Dim, DimPart, Extent, Number, ParameterDim, whole_dims


@dataclass(frozen=True)
class Kind(ABC):
    """What a DAG node does, with formulas for s, r, G: entries ~ m^-s, change ~ m^-r, gradient ~ m^-G (m, width ratio).

    Attributes:
        inputs: names of the DAG nodes that are read; None stands for a constant (data, a mask, a buffer).
        vectors: names of the Vector nodes that are added to the result or multiplied onto it: the bias of a layer, gain
            and bias of a norm.
    """

    inputs: tuple[str | None, ...]
    vectors: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all DAG nodes that this node reads, those of biases and gains (vectors) among them."""
        return (*(name for name in self.inputs if name is not None), *self.vectors)

    def changes(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield all upper bounds on r of the node's output, whose change in training is ~ m^-r (m, the width ratio)."""
        yield from self.change(node, context)
        for vector in self.vectors:
            if context.changes(vector):
                yield Bound(RowLabel(RowKind.CHANGE, vector), (("r", vector),), 0.0)

    def gradients(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield (input, upper bound on its G; gradient ~ width^-G) for each input, bias and gain."""
        yield from self.gradient(node, context)
        for vector in self.vectors:
            yield vector, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), 0.0)

    @property
    def name(self) -> str:
        """The name of the class in lower case, such as "layer", as users see it."""
        return type(self).__name__.lower()

    @abstractmethod
    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the node's output, whose entries are ~ m^-s at init (m, the width ratio)."""

    @abstractmethod
    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield bounds on r of the output (change ~ width^-r) that come from inputs and the node's own parameter."""

    @abstractmethod
    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield (input, upper bound on its G; gradient ~ width^-G) for each input, but not for biases and gains."""


@dataclass(frozen=True)
class Layer(Kind):
    """A use of a weight W on an input x: y = m^-a W x (m, the width ratio; a, the exponent of the multiplier).

    Attributes:
        parameter: name of the weight.
        fan_in: dims of the weight that are summed over; none for a lookup in a table.
        fan_out: dims of the weight that the result has.
        pieces: number of layers that it counts as in the linear program's objective: 3 for fused q, k, v.
        inner: whether no scale node can be placed at it, inside an op; then a = 0: init and rate carry the multiplier.
        factor: a number that the model itself multiplies the weight with.
        fan_back: dims that the gradient of the input sums over, if not all of `fan_out` (convolutions with groups).
        normalised: whether forward divides the weight by a norm of itself, so that it is not as large as the parameter.
    """

    parameter: str
    fan_in: tuple[Dim, ...]
    fan_out: tuple[Dim, ...]
    pieces: int = 1
    inner: bool = False
    factor: Number = field(default_factory=Number)
    fan_back: tuple[Extent, ...] | None = None
    normalised: bool = False

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the output of a layer at init, y = m^-a W x ~ m^-s (m, the width ratio).

        That is a + b + s_x - e_in / 2, where W is ~ m^-b, x ~ m^-s_x, and fan_in ~ m^e_in: a sum over fan_in terms with
        random signs.
        """
        product = context.a(node) + context.init(node) + context.size(self.inputs[0]) - context.growth(*self.fan_in) / 2
        return min(product, 0.0) if self.vectors else product

    @property
    def part(self) -> DimPart | None:
        """The columns of the weight that this layer has, if it is one segment of a layer on concatenated tensors."""
        return next((dim for dim in self.fan_in if isinstance(dim, DimPart)), None)

    def gradient_name(self, node: str) -> str:
        """Return the name of g (the weight's gradient is ~ m^-g): the parameter or, for some columns, this node."""
        return self.parameter if self.part is None else node

    def _update(self, node: str, context: ExponentContext) -> tuple[tuple[tuple[str, str], ...], float]:
        """Return (variables, constant) that sum to x; a step at rate ~ width^-c changes the weight by ~ width^-x."""
        rate = ("c", self.parameter)
        update = context.family(self.parameter).update
        if update == "gradient":
            return (rate, ("g", self.gradient_name(node))), 0.0
        return (rate,), context.b(self.parameter) if update == "relative" else 0.0

    def stored_growth(self, context: ExponentContext) -> tuple[float, float]:
        """Return the exponents with which the rows and the columns of the stored weight grow with width.

        Rows are fan_out, except in a matrix that is stored the other way round: a table, or a weight of x @ w.
        """
        rows, columns = (ParameterDim(self.parameter, index) for index in (0, 1))
        fan_in = whole_dims(self.fan_in)
        if self.fan_out == (columns,) and fan_in in ((), (rows,)):
            return context.growth(rows), context.growth(columns)
        return context.growth(*self.fan_out), context.growth(*fan_in)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield the bounds on r of the output y of a layer: training changes y by dW x + W dx + dW dx, ~ m^-r.

        The rate is m^-c, and entries of the update at rate 1 are ~ m^-q: q is 0 for Adam, g for SGD (gradient of the
        weight ~ m^-g), b for Adafactor (weight ~ m^-b). Then the rows are

            r <= a + c + q + s_x - e_in alpha    dW x,   `RowKind.ALPHA`: the row that mostly decides c
            r <= a + c + q + r_x - e_in u        dW dx,  `RowKind.U`
            r <= a + b     + r_x - e_in omega    W dx,   `RowKind.OMEGA`

        with a of the multiplier m^-a; s_x and r_x of the input (size m^-s_x, once trained; change m^-r_x); e_in, the
        growth exponent of fan_in; and alpha, u, omega, the alignments: a sum over n = fan_in terms grows like n^alpha,
        from n^1/2 (random signs) to n^1 (one sign). For example, Adam (q = 0) at a hidden layer (e_in = 1, a = s_x = 0)
        with alpha = 1 keeps r >= 0 if c >= 1. Muon has two rows of its own, by the operator norm.
        """
        x, a, e_in = self.inputs[0], context.a(node), context.growth(*self.fan_in)
        moved = x is not None and context.changes(x)
        if context.learns(self.parameter) and (family := context.family(self.parameter)).update == "spectral":
            # an operator norm bounds dW x for every x, so there is no alignment to choose
            grown = family.spectral_growth(e_in, context.growth(*self.fan_out), self.stored_growth(context))
            yield Bound(RowLabel(RowKind.ALPHA), (("c", self.parameter),), a + context.trained_size(x) - grown)
            if x is not None and moved:
                yield Bound(RowLabel(RowKind.U), (("c", self.parameter), ("r", x)), a - grown)
        elif context.learns(self.parameter):
            update, q = self._update(node, context)
            yield Bound(RowLabel(RowKind.ALPHA), update, a + q + context.trained_size(x), "alpha", e_in)
            if x is not None and moved:
                yield Bound(RowLabel(RowKind.U), (*update, ("r", x)), a + q, "u", e_in)
        if x is not None and moved:
            yield Bound(RowLabel(RowKind.OMEGA), (("r", x),), a + context.init(node), "omega", e_in)

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield the input and bounds on its G (gradient ~ width^-G): W, and with SGD its update, send it back."""
        back = self.fan_out if self.fan_back is None else self.fan_back
        x, a, e_out = self.inputs[0], context.a(node), context.growth(*back)
        if x is None:
            return
        yield x, Bound(RowLabel(RowKind.INITIAL_GRADIENT, node), (("G", node),), a + context.init(node) - e_out / 2)
        if context.learns(self.parameter) and context.family(self.parameter).update == "gradient":
            # g of this use alone: with g over all uses, a tied embedding would feed its own gradient
            update, sent = (("G", node), ("G", node), ("c", self.parameter)), 2 * a + context.trained_size(x)
            yield x, Bound(RowLabel(RowKind.UPDATED_GRADIENT, node), update, sent, "alpha", e_out)

    def parameter_gradient(self, node: str, context: ExponentContext) -> Bound:
        """Return the upper bound that this use of the weight sets on g, where the weight's gradient is ~ width^-g."""
        return Bound(RowLabel(RowKind.WEIGHT_GRADIENT), (("G", node),), context.a(node) + context.size(self.inputs[0]))


@dataclass(frozen=True)
class Vector(Kind):
    """A parameter that is added or multiplied entry by entry (bias, gain, position table), without a multiplier."""

    parameter: str
    dims: tuple[Dim, ...] = ()

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the vector, whose entries are ~ m^-s at init (m, the width ratio)."""
        return context.b(self.parameter)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        yield from ()

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        yield from ()


@dataclass(frozen=True)
class Merge(Kind):
    """A sum, concatenation or selection: as large as the largest input, changing as the one that changes most."""

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the result (entries ~ m^-s at init; m, the width ratio): that of the largest input."""
        return min(context.size(x) for x in self.inputs if x is not None)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield one bound on r of the result (change ~ width^-r) for each input that changes: that input's r."""
        for x in dict.fromkeys(self.inputs):
            if x is not None and context.changes(x):
                yield Bound(RowLabel(RowKind.INPUT, x), (("r", x),), 0.0)

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield each input with the bound on its G (gradient ~ m^-G; m, the width ratio): G of the result."""
        for x in dict.fromkeys(self.inputs):
            if x is not None:
                yield x, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), 0.0)


@dataclass(frozen=True)
class Product(Kind):
    """A product of two activations x and y, entry by entry or as a contraction: d(xy) = x dy + y dx + dx dy.

    Attributes:
        contracted: dims that are summed over; none for a product entry by entry.
        broadcast: dims that only y has, and dims that only x has, as a gate on all entries of a vector lacks theirs.
            The gradient is summed over them, with random signs at init and with one sign once it was trained on.
    """

    contracted: tuple[Extent, ...] = ()
    broadcast: tuple[tuple[Extent, ...], tuple[Extent, ...]] = ((), ())

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of x y (entries ~ width^-s at init): s of x plus s of y, less half the growth of the dims summed."""
        x, y = self.inputs
        return context.size(x) + context.size(y) - context.growth(*self.contracted) / 2 + context.a(node)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield the bounds on r of x y (change ~ width^-r): x dy + y dx + dx dy, counted as aligned in a sum."""
        x, y = self.inputs
        aligned = context.a(node) - context.growth(*self.contracted)
        if x is not None and context.changes(x):
            yield Bound(RowLabel(RowKind.CHANGE, x), (("r", x),), context.size(y) + aligned)
        if y is not None and context.changes(y):
            yield Bound(RowLabel(RowKind.CHANGE, y), (("r", y),), context.size(x) + aligned)
        if x is not None and y is not None and context.changes(x) and context.changes(y):
            yield Bound(RowLabel(RowKind.BOTH_CHANGES), (("r", x), ("r", y)), aligned)

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield x and y with bounds on G (gradient ~ width^-G): that of x y times the other, over dims it lacks."""
        x, y = self.inputs
        for this, other, missing in ((x, y, self.broadcast[0]), (y, x, self.broadcast[1])):
            if this is not None:
                entry, summed = context.size(other) + context.a(node), context.growth(*missing)
                yield this, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), entry - summed / 2)
                if summed > 0:
                    yield this, Bound(RowLabel(RowKind.UPDATED_GRADIENT, node), (("G", node),), entry - summed)


@dataclass(frozen=True)
class Mix(Product):
    """A product of weights, positive and summing to 1 along rows and columns, and x: never larger than x."""

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s (entries ~ width^-s at init) of x, the second input: with weights that sum to one."""
        return context.size(self.inputs[1])

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield the bounds on r (change ~ width^-r): the change of x, and that of the weights times x, summed up."""
        weights, x = self.inputs
        if x is not None and context.changes(x):
            yield Bound(RowLabel(RowKind.CHANGE, x), (("r", x),), 0.0)
        if weights is not None and context.changes(weights):
            moved = -context.growth(*self.contracted)
            yield Bound(RowLabel(RowKind.CHANGE, weights), (("r", weights),), context.size(x) + moved)


@dataclass(frozen=True)
class Unary(Kind):
    """A function of one input: each of its exponents s, r and G (see `Kind`) is the input's plus a constant."""

    @property
    def input(self) -> str:
        """Name of the one DAG node (a layer, sum, norm, ...) that this node reads."""
        (x,) = self.inputs
        assert x is not None, "an op on constants makes no DAG node"
        return x

    @abstractmethod
    def size(self, node: str, context: ExponentContext) -> float: ...

    @abstractmethod
    def shift(self, context: ExponentContext) -> float:
        """Return r of the output minus r of the input (a change is ~ m^-r; m, the width ratio)."""

    def gradient_shift(self, context: ExponentContext) -> float:
        """Return G of the input minus G of the output, where a gradient is ~ width^-G."""
        return self.shift(context)

    def change(self, node: str, context: ExponentContext) -> Iterator[Bound]:
        """Yield the bound on r (change ~ width^-r) of the output: that of the input, shifted by a constant."""
        if context.changes(self.input):
            yield Bound(RowLabel(RowKind.INPUT, self.input), (("r", self.input),), self.shift(context))

    def gradient(self, node: str, context: ExponentContext) -> Iterator[tuple[str, Bound]]:
        """Yield the input and the bound on its G (gradient ~ width^-G): that of the result, shifted by a constant."""
        yield self.input, Bound(RowLabel(RowKind.GRADIENT, node), (("G", node),), self.gradient_shift(context))


@dataclass(frozen=True)
class Norm(Unary):
    """A layer, RMS, batch or group norm: the result is of order 1, so that a multiplier in front has no effect.

    A norm that divides by a sum of powers of n entries, not by their mean, leaves entries of about n^(-1/power).

    Attributes:
        summed: dims of such a sum; none where it is a mean.
        power: 2 for an L2 norm; 1 for x / sum(x), as routers do with the weights of the chosen experts.
    """

    summed: tuple[Dim, ...] = ()
    power: float = 2.0

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of a norm's result (entries ~ width^-s): 0, or more if it divides by a sum over dims that grow."""
        return context.growth(*self.summed) / self.power

    def shift(self, context: ExponentContext) -> float:
        """Return r of the output minus r of the input (changes ~ width^-r): a norm divides by the norm of its input."""
        return self.size("", context) - context.size(self.input)


@dataclass(frozen=True)
class Pointwise(Unary):
    """A function phi with phi(0) != 0 (sigmoid, exp, cos): its output is of order 1 for any input."""

    def size(self, node: str, context: ExponentContext) -> float:
        """Return s of the result (entries ~ width^-s): 0 for an input of order 1 or less, else that of the input."""
        return min(0.0, context.size(self.input))

    def shift(self, context: ExponentContext) -> float:
        return 0.0


@dataclass(frozen=True)
class Power(Unary):
    """A power x ** exponent with a fixed exponent: entries ~ width^-s become ~ width^-(exponent * s)."""

    exponent: float

    def size(self, node: str, context: ExponentContext) -> float:
        return self.exponent * context.size(self.input)

    def shift(self, context: ExponentContext) -> float:
        """Return r of the output minus r of the input (changes ~ width^-r): the derivative is x ** (exponent - 1)."""
        return (self.exponent - 1) * context.size(self.input)


@dataclass(frozen=True)
class Softmax(Unary):
    """A softmax: over a dim of n entries, n growing with the width, each entry of the result is ~ 1 / n."""

    over: tuple[Dim, ...]

    def size(self, node: str, context: ExponentContext) -> float:
        return context.growth(*self.over)

    def shift(self, context: ExponentContext) -> float:
        return context.growth(*self.over)


@dataclass(frozen=True)
class NumberFactor(Unary):
    """A product with a number that may change with width, as 1/sqrt(head_dim) does."""

    factor: Number

    def size(self, node: str, context: ExponentContext) -> float:
        return context.size(self.input) + self.shift(context)

    def shift(self, context: ExponentContext) -> float:
        """Return r of the output minus r of the input (changes ~ width^-r): x, where the factor is ~ width^-x."""
        return -context.number(self.factor)


@dataclass(frozen=True)
class Reduce(Unary):
    """A mean or sum over dims. Along a dim that grows, entries are taken to have one sign: the largest sum."""

    over: tuple[Dim, ...]
    mean: bool

    def size(self, node: str, context: ExponentContext) -> float:
        return context.size(self.input) + self.shift(context)

    def shift(self, context: ExponentContext) -> float:
        """Return r of the output minus r of the input (changes ~ width^-r): 0 for a mean, less for a growing sum."""
        return 0.0 if self.mean else -context.growth(*self.over)

    def gradient_shift(self, context: ExponentContext) -> float:
        """Return G of the input minus G of the output (gradients ~ width^-G): a mean sends back smaller gradients."""
        return context.growth(*self.over) if self.mean else 0.0
