"""The log-scale solve: finds by which power of width each parameter of a larger copy is multiplied.

A larger copy repeats the entries of a small network along every dim that grows. Each of its tensors is then k^form
times the repeated tensor of the small network, where `form` is linear in the unknown exponents v_p of the parameters:
contracting a dim that grows by k^e adds e, products add, a power multiplies, a sum over copies adds e, a mean adds
nothing. Two kinds of rows must hold for the function to stay the same: tensors that are added have one form, and the
form is 0 for outputs and for whatever enters a function that is not homogeneous (gelu, softmax, the eps of a norm).
What these rows leave free is decided by rows that should hold.

With Adam a copy trains as the small network does iff lr_p is multiplied by k^v_p. So -v_p is the *clone exponent* of p:
the c that the LP must find under full alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InfeasibleError
from abcfx.exponents.fixed import FixedExponents
from abcfx.growing.equations import Equations, Form, as_fraction, combined, known_value
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Layer, Number, Vector
from abcfx.rules.extents import Extent
from abcfx.rules.fixed_dims import FixedDims
from abcfx.rules.kinds import Merge, Norm, NumberFactor, Pointwise, Power, Product, Reduce, Softmax
from abcfx.rules.weight_kinds import ScaledLayer
from abcfx.support import arguments
from abcfx.support.location import location

ZERO: Form = {}


@dataclass(frozen=True)
class Scales:
    """The factors by which a larger copy multiplies its parameters, as powers of the width ratio m.

    Attributes:
        exponents: for each parameter {e: q}: its factor is the product of m^(e q), where m^e is the ratio of the sizes
            of a dim, so that factors are exact powers of such ratios.
    """

    exponents: Mapping[str, Form]

    def exponent(self, parameter: str) -> Fraction:
        """Return v of a parameter, which a larger copy multiplies by m^v (m, the width ratio)."""
        return known_value(self.exponents[parameter])


@arguments.checked(
    dag=arguments.instance_of(LayerDag, "a LayerDag"), growth=arguments.instance_of(WidthGrowth, "a WidthGrowth")
)
def solve_scales(dag: LayerDag, growth: WidthGrowth, multipliers: Mapping[str, float] | None = None) -> Scales:
    """Find the factor on every parameter with which a larger copy, made of repeated entries, computes the same.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim and number: 0 if it is the same in a wider model, 1 if it grows with the
            width.
        multipliers: for a layer or attention product, a, where a scale node multiplies it by m^-a (m, the width ratio).

    Raises:
        InfeasibleError: no factors keep the function; names the node whose condition contradicts those before it.
    """
    return _Scaling(dag, growth, multipliers or {}).solve()


@arguments.checked(fixed=arguments.instance_of(FixedExponents, "FixedExponents"))
def clone_exponents(fixed: FixedExponents) -> dict[str, Fraction]:
    """Return c of each parameter, where with lr multiplied by m^-c a larger copy trains as the small network does.

    m is the width ratio; the copy is made of repeated entries and trained with Adam. `fixed` has the layer DAG, the
    growth exponents of its dims, and multipliers.
    """
    multipliers = fixed.attention | {node: a for p in fixed.parameters.values() for node, a in p.a.items()}
    scales = solve_scales(fixed.dag, fixed.widths, multipliers)
    return {name: -scales.exponent(name) for name in scales.exponents}


class _Scaling:
    """A solver for the factors on the parameters of a larger copy, made of repeated entries, of a network.

    Each node's tensor is m^f times the small network's tensor with its entries repeated (m, the width ratio); f, its
    *form*, is a linear expression in unknown exponents of the parameters.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim and number: 0 if it is the same in a wider model, 1 if it grows with the
            width.
        multipliers: for a layer or attention product, a, where a scale node multiplies it by m^-a.
    """

    def __init__(self, dag: LayerDag, growth: WidthGrowth, multipliers: Mapping[str, float]) -> None:
        """Keep the layer DAG, growth exponents and multipliers; set up no equations for the parameters' factors yet."""
        self.dag, self.growth, self.multipliers = dag, growth, multipliers
        self.equations = Equations()
        self.forms: dict[str, Form] = {}

    def solve(self) -> Scales:
        """Find by which power of m each node's tensor grows, and the factors on parameters that keep the function.

        Raises:
            InfeasibleError: there are none.
        """
        for node in self.dag.order:
            self.forms[node] = self._form(node)
            for why, row in self._required(node):
                if not self.equations.require(row):
                    raise self._contradiction(node, why, row)
        for node in self.dag.order:
            if node in self.dag.outputs and self._is_used_too(node):
                self.equations.require(self.forms[node])  # left out if it contradicts the rows so far
        outputs, finite, contracted = list[Form](), list[Form](), list[Form]()
        for node, kind in self.dag.layers():
            for end in self._ends(node):
                outputs.append(self.forms[end])
                own = combined((1, self._weight(node, kind)), (1, self.forms[end]), (-1, self.forms[node]))
                (contracted if self._extents(*kind.fan_in) else finite).append(own)
        finite += [{kind.parameter: Fraction(1)} for _, kind in self.dag.vectors()]
        for should in (outputs, finite, contracted):
            self.equations.least_squares(should)
        return Scales({name: self.equations.solution(name) for name in self.dag.uses()})

    def _form(self, node: str) -> Form:
        """Return f of a DAG node, whose tensor in a larger copy of a network is m^f times the repeated small one.

        m is the width ratio; the copy is made of repeated entries. f is a linear expression in the unknown exponents of
        the parameters.
        """
        kind = self.dag.kind(node)
        first = self._form_of(kind.inputs[0]) if kind.inputs else ZERO
        match kind:
            case Layer():
                own = combined((1, first), (1, self._weight(node, kind)))
                if isinstance(kind, ScaledLayer):
                    own = combined((1, own), *((1, self._form_of(each)) for each in kind.cofactors))
            case Vector():
                own = {kind.parameter: Fraction(1)}
            case Merge():
                own = self._form_of(next(x for x in kind.inputs if x is not None))
            case Product():
                contracted = self._extents(*kind.contracted)
                factors = ((1, self._form_of(x)) for x in kind.inputs)
                own = combined(*factors, (1, contracted), (-1, self._multiplier(node, contracted)))
            case Norm():
                own = combined((-1 / as_fraction(kind.power), self._extents(*kind.summed)))
            case Pointwise() | FixedDims():
                own = ZERO
            case Power():
                own = combined((kind.exponent, first))
            case Softmax():
                own = combined((-1, self._extents(*kind.over)))
            case NumberFactor():
                own = combined((1, first), (1, self._extents(kind.factor)))
            case Reduce():
                own = combined((1, first), (0 if kind.mean else 1, self._extents(*kind.over)))
            case _:
                raise NotImplementedError(f"no law of scales for {type(kind).__name__}")
        return combined((1, own), *((1, self._form_of(gain)) for gain in self.dag.node(node).gains))

    def _required(self, node: str) -> Iterator[tuple[str, Form]]:
        """Yield the conditions of a DAG node for the function to stay the same: (reason in words, what must be 0)."""
        kind, form = self.dag.kind(node), self.forms[node]
        if isinstance(kind, Merge):
            for x in kind.inputs:
                yield f"{x} must grow like the tensors that it is added to", combined((1, self._form_of(x)), (-1, form))
        for vector in kind.vectors:
            if vector not in self.dag.node(node).gains:
                yield (
                    f"{vector} must grow like the tensor that it is added to",
                    combined((1, self._form_of(vector)), (-1, form)),
                )
        divides_by_sum = isinstance(kind, Norm) and kind.power == 1.0  # without an eps
        if isinstance(kind, Norm | Pointwise | Softmax | FixedDims) and not divides_by_sum:
            yield f"what enters {kind.name} must keep its size", self._form_of(kind.inputs[0])
        if self.dag.node(node).is_pinned:
            yield "it enters a function that is not homogeneous, and must keep its size", form
        if node in self.dag.outputs and not self._is_used_too(node):
            yield "an output of the model must keep its size", form

    def _is_used_too(self, node: str) -> bool:
        """Whether the model itself uses an output that it returns, such as a cache of keys or a hidden state."""
        return bool(self.dag.successors(node))

    def _ends(self, node: str) -> list[str]:
        """Return the DAG nodes whose tensors should stay as large in a larger copy, so that the output of a layer does.

        That is the layer itself, or its products with numbers if nothing else reads it.
        """
        followers = self.dag.successors(node)
        if (
            node in self.dag.outputs
            or not followers
            or not all(isinstance(self.dag.kind(n), NumberFactor) for n in followers)
        ):
            return [node]
        return [end for n in followers for end in self._ends(n)]

    def _form_of(self, node: str | None) -> Form:
        """Return f of a DAG node, whose tensor in a larger copy of a network is m^f times the repeated small one.

        m is the width ratio; the copy is made of repeated entries. f is 0 for a constant.
        """
        return ZERO if node is None else self.forms[node]

    def _weight(self, node: str, layer: Layer) -> Form:
        """Return what a layer adds to f, where its input in a larger copy is m^f times the small one, repeated.

        m is the width ratio. It is the unknown exponent of the layer's parameter, minus a of its multiplier m^-a, plus
        the growth exponents of the dims that it sums over and of numbers in the model's own code.
        """
        fan_in, own = self._extents(*layer.fan_in), self._extents(layer.factor)
        multiplier = self._multiplier(node, fan_in | self._extents(*layer.fan_out))
        return combined((1, {layer.parameter: Fraction(1)}), (-1, multiplier), (1, fan_in), (1, own))

    def _multiplier(self, node: str, extents: Form) -> Form:
        """Return a of a DAG node that is multiplied by m^-a (m, the width ratio), as {e: q} for a = e q.

        e is the growth exponent of a dim of the node if a is a simple multiple of it, else 1.

        Args:
            node: the node.
            extents: the growth exponents of its dims.
        """
        a = self.multipliers.get(node, 0.0)
        for e in extents if a else ():
            if not isinstance(e, str) and (ratio := as_fraction(a / e)).denominator <= 12:
                return {e: ratio}
        return {1.0: as_fraction(a)}

    def _extents(self, *extents: Extent) -> Form:
        """Return the sum of growth exponents of dims and numbers, as {e: q} for the sum of all e q."""
        total: Form = {}
        for extent in extents:
            for what, power in extent.powers if isinstance(extent, Number) else ((extent, 1.0),):
                e = self.growth.number(Number(((what, 1.0),)))
                total = combined((1, total), (power if e else 0, {e: Fraction(1)}))
        return total

    def _contradiction(self, node: str, why: str, row: Form) -> InfeasibleError:
        """Return the error that no factors on parameters make a larger copy compute the same as the small network.

        The condition of this DAG node (in words, `why`) contradicts those of earlier nodes: `row`, a linear expression
        in the exponents of factors, would have to be 0 and cannot.
        """
        left = known_value(self.equations.reduced(row))
        at = self.dag.node(node).fx_node
        return InfeasibleError(
            f"No larger copy of this model can be function preserving: {node} would be m^{float(left):g} too large.\n"
            f"  in {location(at)}\n"
            f"  {node}: {why}; the rows of the nodes before it leave no factor that could make up for it.\n"
            f"  To fix: a multiplier that scales with width there, a norm with a gain before it, or an untied weight."
        )
