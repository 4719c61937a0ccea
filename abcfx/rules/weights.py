"""The parameters behind a computed weight: one that is reparametrized, masked, scaled, normed, or a sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.fx as fx

from abcfx.capture.leaves import NORMS
from abcfx.errors import UnknownOpError
from abcfx.rules.builder import DagBuilder
from abcfx.rules.extents import Dim, Extent, Number, ParameterDim
from abcfx.rules.kinds import Layer, Merge, Norm, NumberFactor, Power, Product, Unary, Vector
from abcfx.rules.registry import plain_name
from abcfx.rules.values import Value, WeightTerm, index_from_end, shape_of
from abcfx.rules.weight_kinds import ScaledLayer
from abcfx.support.location import location


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that is a parameter or is computed from parameters, as the sum of products of them that it is.

    Attributes:
        terms: the products of parameters whose sum it is.
        is_normalised: whether the weight is divided by a norm of itself.
        is_composed: whether multiplying the whole weight by a number is another thing than multiplying one of its
            parameters by it.
    """

    terms: tuple[WeightTerm, ...]
    is_normalised: bool = False
    is_composed: bool = False


def is_weight(builder: DagBuilder, x: Value) -> bool:
    """Whether a tensor is a parameter, or computed from parameters and constants alone."""
    return x.parameter is not None if x.node is None else builder.nodes[x.node].is_parametric


def read_weight(builder: DagBuilder, weight: Value) -> ComputedWeight | None:
    """Find the parameters behind a weight: the products of parameters whose sum it is, perhaps divided by a norm.

    None for an activation, a constant, or any other function of parameters.
    """
    if not weight.terms and not is_weight(builder, weight):
        return None
    if weight.node is None:
        term = WeightTerm((weight,), is_curved=weight.is_curved)
        return ComputedWeight((term,), weight.normalised, weight.is_curved)
    if terms := weight.terms:
        is_composed = len(terms) > 1 or any(len(term.chain) > 1 or term.is_curved for term in terms)
        return ComputedWeight(terms, weight.normalised, is_composed)
    kinds = [builder.kind(node) for node in builder.above(weight.node)]
    if not any(isinstance(kind, Norm) or (isinstance(kind, Power) and kind.exponent < 0) for kind in kinds):
        return None
    shapes = {kind.parameter: builder.shapes[kind.parameter] for kind in kinds if isinstance(kind, Vector)}
    mains = [name for name, shape in shapes.items() if sum(size > 1 for size in shape) > 1] or list(shapes)
    gains = tuple(name for name in shapes if name not in mains)
    factor = _factor(builder, weight.node)
    matrices = [_matrix(weight, name, shapes[name]) for name in mains]
    return ComputedWeight(
        tuple(WeightTerm((replace(each, gains=gains),), factor=factor) for each in matrices), is_normalised=True
    )


def layer_kind(source: str | None, matrix: Value, term: WeightTerm, is_last: bool) -> Layer:
    """Return the kind of DAG node, a layer still without its dims, for one matrix of a product of parameters.

    Args:
        source: the DAG node of the layer's input.
        matrix: the matrix, a parameter.
        term: the product that it is a factor of.
        is_last: whether the matrix makes the output of the product; it then gets the product's number and its
            cofactors.
    """
    assert matrix.parameter is not None
    factor = term.factor if is_last else Number()
    if is_last and term.cofactors:
        return ScaledLayer((source,), matrix.parameter, (), (), factor=factor, cofactors=term.cofactors)
    return Layer((source,), matrix.parameter, (), (), factor=factor)


def in_order_of_use(term: WeightTerm, fan_in: Sequence[int]) -> tuple[Value, ...]:
    """Return the matrices of a product of parameters in the order in which the layer's input meets them.

    `fan_in` are the dims of the product that are summed over: its first for x @ W, its last for W @ x.
    """
    first_dim = all(i in (0, -2) for i in fan_in)
    return term.chain if first_dim else term.chain[::-1]


def dims_of(matrix: Value, weight: Value, indices: Sequence[int]) -> tuple[Dim, ...]:
    """Return the dims of a parameter matrix that are those of the weight computed from it at some indices.

    A stack of matrices has more dims than each of them: dims are then counted from the last one.
    """
    rank, whole = matrix.ndim, weight.ndim
    if rank is None or whole is None or rank == whole:
        return matrix.dims_at(indices)
    from_end = [i - whole if i >= 0 else i for i in indices]
    return matrix.dims_at([i for i in from_end if -i <= rank])


def _matrix(weight: Value, name: str, shape: tuple[int, ...]) -> Value:
    """Return a record (abstract tensor) of a parameter, in place of the weight that is computed from it.

    Its dims are known if it has as many as the weight.
    """
    same_rank = len(shape) == (weight.ndim or len(shape))
    dims = tuple(range(len(shape))) if same_rank else None
    return Value(None, weight.at, name, dims, shape if same_rank else weight.shape)


def _factor(builder: DagBuilder, node: str) -> Number:
    """Return the product of all numbers by which the graph multiplies a parameter until it is a weight."""
    factor = Number()
    while isinstance(kind := builder.kind(node), Unary):
        factor = factor.times(kind.factor) if isinstance(kind, NumberFactor) else factor
        node = kind.input
    return factor


class VectorContraction(NamedTuple):
    """A layer x @ v that is written as (x * v).sum(): an activation times a parameter, entry by entry, then summed.

    Attributes:
        input: the activation.
        weight: the parameter.
        fan_in: dims of the parameter that are summed over.
        fan_out: its other dims.
        fan_back: those of them that the activation lacks, over which its gradient is summed; None if these are all.
    """

    input: Value
    weight: Value
    fan_in: list[int]
    fan_out: list[int]
    fan_back: tuple[Dim, ...] | None


def vector_contraction(
    builder: DagBuilder, total: Value, dims: Sequence[int] | None, at: fx.Node
) -> VectorContraction | None:
    """Recognise (x * v).sum(-1), with a parameter v, as the layer x @ v.

    Args:
        builder: the nodes so far.
        total: the product that is summed.
        dims: the dims that are summed over; None for all.
        at: the fx node of the sum.

    Returns:
        None if the tensor is no product of an activation and a parameter that runs along the dims.
    """
    kind = builder.kind(total.node) if total.node is not None else None
    if not isinstance(kind, Product) or kind.contracted or dims is None or total.ndim is None:
        return None
    if not _is_unchanged(total.at, builder.nodes[str(total.node)].fx_node):
        return None
    for side, (this, other) in enumerate((kind.inputs, kind.inputs[::-1])):
        vector = None if other is None else builder.kind(other)
        if this is None or not isinstance(vector, Vector) or builder.nodes[this].is_parametric:
            continue
        shape = builder.shapes[vector.parameter]
        along = [len(shape) - total.ndim + d % total.ndim for d in dims]
        if all(0 <= i < len(shape) and shape[i] > 1 for i in along):
            weight = Value(None, at, vector.parameter, tuple(range(len(shape))), shape)
            rest = [i for i, size in enumerate(shape) if size > 1 and i not in along]
            lacking = {_from_end(dim, len(shape)) for dim in kind.broadcast[side]}
            back = [i for i in rest if i - len(shape) in lacking or None in lacking]
            fan_back = None if back == rest else weight.dims_at(back)
            return VectorContraction(Value(this), weight, along, rest, fan_back)
    return None


class Factors(NamedTuple):
    """A product of two activations, entry by entry, and the number that multiplies it."""

    kind: Product
    number: Number


def factors_of(builder: DagBuilder, x: Value, indices: Sequence[int]) -> Factors | None:
    """Return the two activations whose product a tensor is; None where a sum over dims of it is no dot product.

    Args:
        builder: the nodes so far.
        x: the tensor, perhaps a number times a product of activations.
        indices: the dims that are summed over, counted from the end; both activations must have them.
    """
    number, node = Number(), x.node
    while node is not None and isinstance(scaled := builder.kind(node), NumberFactor):
        number, node = number.times(scaled.factor), scaled.input
    if node is None or not indices or builder.nodes[node].is_parametric:
        return None
    kind = builder.kind(node)
    if type(kind) is not Product or kind.contracted:
        return None
    lacking = {index_from_end(dim) for dims in kind.broadcast for dim in dims}
    return None if lacking & {None, *indices} else Factors(kind, number)


def summands(builder: DagBuilder, x: Value) -> list[tuple[Value, Number]]:
    """Return the tensors that x is a sum of, entry by entry, each with the number that multiplies it.

    x itself is the only one unless it is made by additions and products with numbers.
    """
    if x.node is None or not _is_unchanged(x.at, builder.nodes[x.node].fx_node):
        return [(x, Number())]
    kind, fx_node = builder.kind(x.node), builder.nodes[x.node].fx_node
    is_sum = isinstance(kind, Merge) and plain_name(fx_node.target) in ("add", "sub", "rsub", "addcmul")
    if not is_sum and not isinstance(kind, NumberFactor):
        return [(x, Number())]
    factor = kind.factor if isinstance(kind, NumberFactor) else Number()
    found: list[tuple[Value, Number]] = []
    for source in kind.sources:
        own = builder.nodes[source].fx_node
        at = next((each for each in (fx_node, *fx_node.all_input_nodes) if _is_unchanged(each, own)), None)
        if at is None:
            return [(x, Number())]
        below = summands(builder, Value(source, at, shape=shape_of(at)))
        found += [(tensor, number.times(factor)) for tensor, number in below]
    return found


class Summand(NamedTuple):
    """One of the tensors that are added up to make a tensor, which is then summed over some dims.

    Attributes:
        tensor: the tensor.
        factor: the number that multiplies it.
        layer: the layer that its sum is; None for any other.
    """

    tensor: Value
    factor: Number
    layer: VectorContraction | None


def layers_in_sum(
    builder: DagBuilder, x: Value, indices: Sequence[int] | None, mean: bool, at: fx.Node
) -> list[Summand]:
    """Return the summands of a tensor whose sum or mean over dims is a sum of layers, such as (x * v + y * w).sum(-1).

    Args:
        builder: the nodes so far.
        x: the tensor.
        indices: the dims; None for all.
        mean: whether the sum over them is divided by its number of entries, which is then in the factors.
        at: the fx node of the sum.

    Returns:
        None of them if no summand is an activation times a parameter.
    """
    parts = summands(builder, x)
    layers = [vector_contraction(builder, part, indices, at) for part, _ in parts]
    if indices is None or not any(layers) or any(part.shape != x.shape for part, _ in parts[1:]):
        return []
    mean_of = Number(tuple((dim, -1.0) for dim in x.dims_at(indices))) if mean else Number()
    return [Summand(part, factor.times(mean_of), layer) for (part, factor), layer in zip(parts, layers, strict=True)]


_UNCHANGED = frozenset({"neg", "to", "float", "double", "half", "type_as", "clone", "contiguous"})


def _is_unchanged(at: fx.Node | None, made: fx.Node) -> bool:
    """Whether an fx node returns the tensor that another one makes, up to sign and dtype, its dims as they were."""
    while at is not None and at is not made and plain_name(at.target) in _UNCHANGED:
        at = next(iter(at.all_input_nodes), None)
    return at is made


def _from_end(dim: Extent, ndim: int) -> int | None:
    """Return the index, counted from the last one, of a dim of a parameter with `ndim` dims, or of a view of it."""
    return dim.index - ndim if isinstance(dim, ParameterDim) else index_from_end(dim)


def module_parameter(builder: DagBuilder, owner: torch.nn.Module, name: str, at: fx.Node) -> Value | None:
    """Return a parameter of a module that is a single graph node, also if torch reparametrizes it (weight norm).

    Args:
        builder: holds the names of parameters.
        owner: the module.
        name: name of the parameter in the module.
        at: the fx node that calls the module.

    Returns:
        None where the module has no such parameter (a layer without bias).

    Raises:
        UnknownOpError: the weight is computed from parameters in a way that is not known.
    """
    held = getattr(owner, name, None)
    if held is None:
        return None
    gains, normalised = tuple[str, ...](), False
    if held not in builder.names:
        held, gains = _reparametrized(builder, owner, name, held, at)
        normalised = _is_normalised(owner, name)
    dims = tuple(range(held.ndim))
    return Value(None, None, builder.names[held], dims, tuple(held.shape), gains=gains, normalised=normalised)


def _reparametrized(
    builder: DagBuilder, owner: torch.nn.Module, name: str, held: torch.Tensor, at: fx.Node
) -> tuple[torch.nn.Parameter, tuple[str, ...]]:
    """Return the parameter that a reparametrized weight (weight norm, spectral norm) stands for, and its gains.

    At init such a weight equals that parameter up to a norm, and it changes as the parameter does.

    Args:
        builder: holds the names of parameters.
        owner: the module.
        name: name of the weight in the module.
        held: the weight.
        at: the fx node that calls the module.

    Raises:
        UnknownOpError: the weight is computed from parameters in a way that is not known.
    """
    parts = [p for n, p in owner.named_parameters() if n.startswith((f"parametrizations.{name}.", f"{name}_"))]
    main = [p for p in parts if p.shape == held.shape and p in builder.names]
    if len(main) != 1:
        kind = type(owner).__name__
        raise UnknownOpError(
            f"{kind}.{name} is computed from {len(parts)} parameters, and how it changes with them is not known.\n"
            f"  in {location(at)}\n"
            f"  expected: one parameter of its shape, {tuple(held.shape)}; got {len(main)}.\n"
            f"  To fix: register a rule for the module, @abcfx.rules.register_rule({kind})"
        )
    return main[0], tuple(builder.names[p] for p in parts if p is not main[0] and p in builder.names)


def _is_normalised(owner: torch.nn.Module, name: str) -> bool:
    """Whether a weight is computed by torch's weight norm, spectral norm or orthogonal parametrization."""
    registered = getattr(owner, "parametrizations", None)
    if registered is not None and name in registered:
        return any(type(each).__name__ in NORMS for each in registered[name])
    return hasattr(owner, f"{name}_v") or hasattr(owner, f"{name}_orig")  # the older ones, by hooks
