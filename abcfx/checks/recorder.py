"""Records, during one run of a model, each weight's output W x, its update's output dW x, and all attention logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from abcfx.capture.dispatch import AtenOp, CallWatcher
from abcfx.capture.emitted import graphs_within
from abcfx.passes import scale_nodes

ATEN = torch.ops.aten
# Position of what is added to the product (a bias); the update of a layer has none.
ADDED: dict[AtenOp, int] = {
    ATEN.addmm.default: 0,
    ATEN.baddbmm.default: 0,
    ATEN.addbmm.default: 0,
    ATEN.convolution.default: 2,
}
TABLES = {ATEN.embedding.default, ATEN.index.Tensor}
MATRIX_PRODUCTS = {ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, ATEN.addmm.default, ATEN.baddbmm.default}
WEIGHT_OPS = {*MATRIX_PRODUCTS, *TABLES, *ADDED}
NORMS = {ATEN.native_layer_norm.default, ATEN.native_group_norm.default, ATEN.native_batch_norm.default}
SUMS = {ATEN.mean.dim, ATEN.sum.dim_IntList, ATEN.linalg_vector_norm.default}  # of a norm that is written out
MASKED = -1e4  # logits below it are masked out
LOOKUP, PRODUCT, LOGITS = "lookup", "product", "attention logits"


@dataclass(frozen=True, order=True)
class Use:
    """A key for one layer: a parameter in one way of use, or the logits of one attention.

    Attributes:
        parameter: name of the parameter; "" for attention logits.
        kind: "lookup" (table of an embedding), "product" (matrix) or "attention logits". A tied embedding occurs as
            both of the first two.
        index: number of the attention, in the order in which they run; of a weight whose input is a concatenation, the
            number of the columns that meet one of the concatenated tensors; 0 for any other parameter.
    """

    parameter: str
    kind: str
    index: int = 0


class Columns(NamedTuple):
    """The columns of a weight that meet one of several concatenated tensors.

    Attributes:
        dim: the dim of the weight.
        start: the first column.
        size: how many they are.
    """

    dim: int
    start: int
    size: int


@dataclass
class Seen:
    """What one layer y = W x computed in one run of the model, with one entry for each call in most lists.

    W is the present weight, dW its change since init, x the input.

    Attributes:
        outputs: W x of each call, without a bias.
        updates: mean square of dW x in each call; empty in a run at init.
        inits: mean square of W times that of x times fan_in, in a run at init: the mean square of W x while W is
            independent of x.
        inputs: mean square of x in each call, the layer's multiplier included.
        rows: number of rows (tokens, positions) of x in all calls together.
        fan_in: number of terms of the sum in W x; 1 for a lookup.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    inits: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    rows: int = 0
    fan_in: int = 1

    @property
    def output(self) -> float:
        """The rms of a layer's output W x (weight W, input x, no bias) over all its calls in one run of the model."""
        return rms(self.outputs)

    @property
    def update(self) -> float:
        """The rms of a layer's dW x over all its calls in one run of the model; 0 in a run at init.

        x is the input, dW the change of the weight since init.
        """
        return self._root_mean(self.updates)

    @property
    def init(self) -> float:
        """The rms that W x has at init if W and x are independent, rms(W) rms(x) sqrt(fan_in).

        For lookups and attention logits, which have no such product, it is the rms of the output.
        """
        return self._root_mean(self.inits) if self.inits else self.output

    @property
    def input(self) -> float:
        """The rms of a layer's input over all its calls in one run of the model; 0 where no input was recorded."""
        return (sum(self.inputs) / len(self.inputs)) ** 0.5 if self.inputs else 0.0

    def change(self, first: Seen) -> float | None:
        """Return the rms of the difference between the layer's present output and that of an earlier run.

        Args:
            first: what the same layer computed in the earlier run.

        Returns:
            The rms; None if the shapes differ, since other rows came in, as with experts that get other tokens.
        """
        if [output.shape for output in self.outputs] != [output.shape for output in first.outputs]:
            return None
        return rms([now - then for now, then in zip(self.outputs, first.outputs, strict=True)])

    def _root_mean(self, squares: list[float]) -> float:
        """Return the root of the mean of mean squares, each weighted by the entries of that call's output."""
        counts = [output.numel() for output in self.outputs]
        total = sum(square * count for square, count in zip(squares, counts, strict=True)) if squares else 0.0
        return (total / sum(counts)) ** 0.5 if sum(counts) else 0.0

    def multiply_last(self, factor: float) -> None:
        """Multiply a layer's last recorded output, and that of its update, by a number.

        The model multiplies by it right after the layer, so that it counts as part of the layer.
        """
        self.outputs[-1] = self.outputs[-1] * factor
        if self.updates:
            self.updates[-1] *= factor**2


def rms(tensors: list[torch.Tensor]) -> float:
    """Return the root mean square of all entries of several tensors together, summed in float64; 0 without entries."""
    count = sum(t.numel() for t in tensors)
    return (sum(_mean_square(t) * t.numel() for t in tensors) / count) ** 0.5 if count else 0.0


def _mean_square(tensor: torch.Tensor) -> float:
    """Return the mean square of a tensor's entries, summed in float64; 0 for an empty tensor."""
    return float(tensor.double().square().mean()) if tensor.numel() else 0.0


class Recorder(CallWatcher):
    """A context manager that watches one run of a model and records what every weight and every attention computes.

    Each op with a weight W is run a second time with dW, the change of W since init, in its place. A weight is
    recognised by its storage, so that views of it (transposed, one head of it) count. Attention logits are what goes
    into a softmax and comes out of a product of two activations; for a fused attention op they are computed again from
    its queries and keys, without mask.

    Args:
        module: the model; its parameters with more than one dim are watched.
        first: the parameters at init, by name; None in the run at init itself, where no dW exists.
        columns: for weights whose input is a concatenation, the columns of each tensor, which are recorded apart.

    Attributes:
        found: what each layer computed, filled by everything that runs within the `with` block.
    """

    def __init__(
        self,
        module: nn.Module,
        first: Mapping[str, torch.Tensor] | None,
        columns: Mapping[str, Sequence[Columns]] | None = None,
    ) -> None:
        super().__init__()
        self._columns = columns or {}
        self.found: dict[Use, Seen] = {}
        self._parameters = {name: each.detach() for name, each in module.named_parameters() if each.ndim > 1}
        self._names = {_place(each): name for name, each in self._parameters.items()}
        self._first = first
        self._changes: dict[str, torch.Tensor] = {}
        self._factors_of_products = _factors_before_products(module)
        # Tensors are held here for the run: a storage that were freed could be used again for another tensor.
        self._looked_up: tuple[Use, torch.Tensor] | None = None
        self._logits: dict[int, torch.Tensor] = {}
        self._attentions = 0

    def watch(self, op: AtenOp, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Make one aten call of the model's run, record what it does with watched weights, and return its result."""
        out: object = op(*args, **kwargs)
        with torch.no_grad():
            self._look(op, args, kwargs, out)
        return out

    def _look(self, op: AtenOp, args: tuple[object, ...], kwargs: Mapping[str, object], out: object) -> None:
        """Record one aten call of the run: an op with a weight, a number times a lookup, or attention logits.

        Outputs of products of two activations are followed through elementwise ops until they reach a softmax.

        Args:
            op: the aten op.
            args, kwargs: what it was called with.
            out: its result.
        """
        if op is ATEN.mul.Tensor and self._looked_up is not None and _place(args[0]) == _place(self._looked_up[1]):
            self._multiply(self._looked_up[0], args[1], out)
        if op in WEIGHT_OPS:
            weights = [
                (position, name)
                for position, arg in enumerate(args)
                if position != ADDED.get(op) and (name := self._names.get(_place(arg)))
            ]
            for position, name in weights:
                self._weight_op(op, args, kwargs, position, name, out)
            if not weights and op in MATRIX_PRODUCTS and isinstance(out, torch.Tensor) and out.ndim >= 2:
                self._logits[_place(out)] = out
        elif op is ATEN._softmax.default:
            if isinstance(args[0], torch.Tensor) and _place(args[0]) in self._logits:
                self._attend(args[0])
        elif op.__name__.startswith("_scaled_dot_product"):
            self._attend(_fused_logits(args, kwargs))
        elif (
            isinstance(out, torch.Tensor)
            and op not in NORMS | SUMS
            and any(_place(arg) in self._logits for arg in args)
        ):
            self._logits[_place(out)] = out

    def _weight_op(
        self, op: AtenOp, args: Sequence[object], kwargs: Mapping[str, object], position: int, name: str, out: object
    ) -> None:
        """Record a call that uses a watched weight W: as one layer, or as one for each of the groups in `columns`.

        Args:
            op: the aten op.
            args, kwargs: what it was called with.
            position: where in `args` the weight stands.
            name: name of the weight's parameter.
            out: result of the call.
        """
        pieces = self._pieces(op, args, position, name)
        for index, piece in enumerate(pieces):
            self._record(op, piece, kwargs, position, Use(name, PRODUCT, index), op(*piece, **kwargs))
        if not pieces:
            self._record(op, args, kwargs, position, Use(name, LOOKUP if op in TABLES else PRODUCT), out)

    def _pieces(self, op: AtenOp, args: Sequence[object], position: int, name: str) -> list[list[object]]:
        """Return the arguments of a call, cut to each group of columns of its weight that `columns` has; else [].

        Args:
            op: the aten op.
            args: what it was called with.
            position: where in `args` the weight stands.
            name: name of the weight's parameter.
        """
        columns = self._columns.get(name, ())
        tensors = {i: arg for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and i != ADDED.get(op)}
        if not columns or op in TABLES or len(tensors) != 2:
            return []
        weight, parameter, dim = tensors.pop(position), self._parameters[name], columns[0].dim
        ((place, x),) = tensors.items()
        if op is ATEN.convolution.default:
            of_weight, of_x = dim, 1
        else:
            of_weight, of_x = (-2, -1) if place < position else (-1, -min(2, x.ndim))
        if (weight.shape[of_weight], weight.stride(of_weight)) != (parameter.shape[dim], parameter.stride(dim)):
            return []
        found = []
        for _, start, size in columns:
            piece = list(args)
            piece[position], piece[place] = weight.narrow(of_weight, start, size), x.narrow(of_x, start, size)
            found.append(piece)
        return found

    def _record(
        self, op: AtenOp, args: Sequence[object], kwargs: Mapping[str, object], position: int, use: Use, out: object
    ) -> None:
        """Record a call as one of a layer: output without bias, input, and output with the update dW for W.

        Args:
            op: the aten op.
            args, kwargs: what it was called with.
            position: where in `args` the weight stands.
            use: the layer.
            out: result of the call.
        """
        seen = self.found.setdefault(use, Seen())
        plain, added = list(args), ADDED.get(op)
        if added is not None and isinstance(bias := plain[added], torch.Tensor):
            plain[added] = torch.zeros_like(bias)
            out = op(*plain, **kwargs)
        assert isinstance(out, torch.Tensor)
        seen.outputs.append(out.detach().clone())
        if op in TABLES:
            self._looked_up = use, out
        else:
            self._look_at_input(seen, op, args, position, out)
        if self._first is not None:
            view = args[position]
            assert isinstance(view, torch.Tensor)
            plain[position] = self._change(use.parameter).as_strided(view.size(), view.stride(), view.storage_offset())
            seen.updates.append(_mean_square(op(*plain, **kwargs)))

    def _look_at_input(self, seen: Seen, op: AtenOp, args: Sequence[object], position: int, out: torch.Tensor) -> None:
        """Record a call's input x: mean square, number of rows, fan_in, and at init the expected rms of W x.

        Args:
            seen: where to record it.
            op: the aten op.
            args: what it was called with.
            position: where in `args` the weight stands.
            out: result of the call.
        """
        tensors = {i: arg for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and i != ADDED.get(op)}
        weight = tensors[position]
        if op is ATEN.convolution.default:
            x, seen.fan_in = tensors[0], weight[0].numel()
            seen.rows += out.numel() // out.shape[1]
        else:
            x = next(tensor for place, tensor in tensors.items() if place != position)
            stands_last = position == max(tensors)
            seen.fan_in = weight.shape[-2] if stands_last and weight.ndim > 1 else weight.shape[-1]
            seen.rows += x.numel() // seen.fan_in
        square = _mean_square(x)
        seen.inputs.append(square)
        if self._first is None:
            seen.inits.append(_mean_square(weight) * square * seen.fan_in)

    def _change(self, name: str) -> torch.Tensor:
        """Return dW, the change of a parameter (given by name) since init; it is computed once in a run."""
        if name not in self._changes:
            assert self._first is not None
            self._changes[name] = self._parameters[name] - self._first[name]
        return self._changes[name]

    def _multiply(self, use: Use, factor: object, out: object) -> None:
        """Count a number that multiplies a row right after it is looked up in a table as part of the lookup.

        A factor that `transform` put in front of a later layer belongs to that layer and is not counted. Tensors that
        are no single number are ignored.

        Args:
            use: the lookup.
            factor: what its output is multiplied by.
            out: the product.
        """
        if not isinstance(out, torch.Tensor) or (isinstance(factor, torch.Tensor) and factor.ndim > 0):
            return
        assert isinstance(factor, torch.Tensor | float | int)
        if float(factor) not in self._factors_of_products:
            self.found[use].multiply_last(float(factor))
            self._looked_up = use, out

    def _attend(self, logits: torch.Tensor) -> None:
        """Record the logits of the next attention in the run; masked entries (below -10,000) count as 0."""
        seen = self.found.setdefault(Use("", LOGITS, self._attentions), Seen())
        self._attentions += 1
        seen.outputs.append(torch.where(logits > MASKED, logits, 0.0).detach())


def _factors_before_products(module: nn.Module) -> frozenset[float]:
    """Return the constants that nodes inserted by `transform` multiply a layer's input or weight by.

    Constants that also occur in a node behind a result (such as a lookup) are left out. A module without graphs has
    none.
    """
    before, behind = set[float](), set[float]()
    for graph in graphs_within(module):
        for node, note in scale_nodes(graph).items():
            (behind if note.on_result else before).add(float(node.args[1]))  # type: ignore[arg-type]
    return frozenset(before - behind)


def _place(value: object) -> int:
    """Return the address of a tensor's memory, which views of one tensor share; -1 for a value that is no tensor."""
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else -1


def _fused_logits(args: Sequence[object], kwargs: Mapping[str, object]) -> torch.Tensor:
    """Compute the attention logits (batch, heads, tokens, tokens) of a fused op again, from its queries and keys.

    Args:
        args, kwargs: what the fused op was called with: queries and keys (batch, heads, tokens, head_dim), and perhaps
            `scale`, by default 1 / sqrt(head_dim).
    """
    query, key, scale = args[0], args[1], kwargs.get("scale")
    assert isinstance(query, torch.Tensor) and isinstance(key, torch.Tensor)
    factor = float(scale) if isinstance(scale, int | float) else query.shape[-1] ** -0.5
    if key.shape[1] != query.shape[1]:  # groups of queries share a key
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    product: torch.Tensor = (query.float() @ key.float().transpose(-1, -2)) * factor
    return product
