"""Watches a model run: what its weights add to every layer since init, and its attention logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from abcfx.capture import EmittedModule
from abcfx.passes import scale_nodes

ATEN = torch.ops.aten
# What is added to the product (a bias) stands at this position: the update of a layer has none.
ADDED = {ATEN.addmm.default: 0, ATEN.baddbmm.default: 0, ATEN.addbmm.default: 0, ATEN.convolution.default: 2}
TABLES = {ATEN.embedding.default, ATEN.index.Tensor}
MATRIX_PRODUCTS = {ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, ATEN.addmm.default, ATEN.baddbmm.default}
WEIGHT_OPS = {*MATRIX_PRODUCTS, *TABLES, *ADDED}
NORMS = {ATEN.native_layer_norm.default, ATEN.native_group_norm.default, ATEN.native_batch_norm.default}
SUMS = {ATEN.mean.dim, ATEN.sum.dim_IntList, ATEN.linalg_vector_norm.default}  # of a norm that is written out
MASKED = -1e4  # logits below it are masked out
LOOKUP, PRODUCT, LOGITS = "lookup", "product", "attention logits"


@dataclass(frozen=True, order=True)
class Use:
    """A parameter as a table or as a matrix (a tied one is both), or the attention logits number `index`."""

    parameter: str
    kind: str
    index: int = 0


@dataclass
class Seen:
    """What one layer did in one run of the model, call by call: W x without a bias, and mean squares.

    `updates`: of dW x. `inits`: of W times that of x times fan_in, which is what W x has while W is independent of x.
    `inputs`: of x, multiplier included. `rows`: number of rows of x. `fan_in`: terms of a sum, 1 for a lookup.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    inits: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    rows: int = 0
    fan_in: int = 1

    @property
    def output(self) -> float:
        """rms(W x)."""
        return rms(self.outputs)

    @property
    def update(self) -> float:
        """rms(dW x)."""
        return self._weighted(self.updates)

    @property
    def init(self) -> float:
        """rms(W) rms(x) sqrt(fan_in); of a lookup and of logits, rms of what comes out."""
        return self._weighted(self.inits) if self.inits else self.output

    @property
    def input(self) -> float:
        return (sum(self.inputs) / len(self.inputs)) ** 0.5 if self.inputs else 0.0

    def change(self, first: Seen) -> float | None:
        """rms of W x now minus W x then; None where other rows came in, as with experts."""
        if [o.shape for o in self.outputs] != [o.shape for o in first.outputs]:
            return None
        return rms([now - then for now, then in zip(self.outputs, first.outputs, strict=True)])

    def _weighted(self, squares: list[float]) -> float:
        """Root of the mean over all entries of all calls."""
        counts = [o.numel() for o in self.outputs]
        total = sum(square * count for square, count in zip(squares, counts, strict=True)) if squares else 0.0
        return (total / sum(counts)) ** 0.5 if sum(counts) else 0.0

    def multiply_last(self, factor: float) -> None:
        """The last call's result times a number."""
        self.outputs[-1] = self.outputs[-1] * factor
        if self.updates:
            self.updates[-1] *= factor**2


def rms(tensors: list[torch.Tensor]) -> float:
    """Root mean square of all entries together, summed in float64; 0 without any."""
    count = sum(t.numel() for t in tensors)
    return (sum(_mean_square(t) * t.numel() for t in tensors) / count) ** 0.5 if count else 0.0


def _mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean()) if tensor.numel() else 0.0


class Recorder(TorchDispatchMode):
    """Does every weight op of the code under it a second time with dW in the weight's place.

    A weight is known by its storage, so that views of it (transposed, one head of it) count. Attention logits are what
    goes into a softmax and comes out of a product of two activations; those of a fused attention op are computed again
    from its queries and keys, without mask.

    Args:
        module: whose parameters are watched.
        first: its parameters at init, by name; None at init itself, where no weight has an update.
    """

    def __init__(self, module: nn.Module, first: Mapping[str, torch.Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = {n: p.detach() for n, p in module.named_parameters() if p.ndim > 1}
        self.names = {p.untyped_storage().data_ptr(): n for n, p in self.parameters.items()}
        self.first = first
        self.found: dict[Use, Seen] = {}
        self._changes: dict[str, torch.Tensor] = {}
        self._of_products = _factors_before_products(module)
        self._looked_up: tuple[Use, torch.Tensor] | None = None  # held, as those below
        self._logits: dict[int, torch.Tensor] = {}  # by storage; held, so that no storage is used again
        self._attentions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        with torch.no_grad():
            self._look(func, args, kwargs or {}, out)
        return out

    def _look(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if func is ATEN.mul.Tensor and self._looked_up is not None and _place(args[0]) == _place(self._looked_up[1]):
            self._multiply(self._looked_up[0], args[1], out)
        if func in WEIGHT_OPS:
            weights = [
                (i, name)
                for i, arg in enumerate(args)
                if isinstance(arg, torch.Tensor) and i != ADDED.get(func) and (name := self.names.get(_place(arg)))
            ]
            for position, name in weights:
                self._weight_op(func, args, kwargs, position, name, out)
            if not weights and func in MATRIX_PRODUCTS and out.ndim >= 2:
                self._logits[_place(out)] = out
        elif func is ATEN._softmax.default:
            if _place(args[0]) in self._logits:
                self._attend(args[0])
        elif func.__name__.startswith("_scaled_dot_product"):
            self._attend(_fused_logits(args, kwargs))
        elif (
            isinstance(out, torch.Tensor)
            and func not in NORMS | SUMS
            and any(_place(arg) in self._logits for arg in args)
        ):
            self._logits[_place(out)] = out

    def _weight_op(self, func: Any, args: Any, kwargs: Any, position: int, name: str, out: torch.Tensor) -> None:
        is_table = func in TABLES
        use = Use(name, LOOKUP if is_table else PRODUCT)
        seen = self.found.setdefault(use, Seen())
        plain = list(args)
        added = ADDED.get(func)
        if added is not None and plain[added] is not None:
            plain[added] = torch.zeros_like(plain[added])
            out = func(*plain, **kwargs)
        seen.outputs.append(out.detach().clone())
        if is_table:
            self._looked_up = use, out
        else:
            self._look_at_input(seen, func, args, position, out)
        if self.first is not None:
            view = args[position]
            plain[position] = self._change(name).as_strided(view.size(), view.stride(), view.storage_offset())
            seen.updates.append(_mean_square(func(*plain, **kwargs)))

    def _look_at_input(self, seen: Seen, func: Any, args: Any, position: int, out: torch.Tensor) -> None:
        weight = args[position]
        if func is ATEN.convolution.default:
            x, seen.fan_in = args[0], weight[0].numel()
            seen.rows += out.numel() // out.shape[1]
        else:
            tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and i != ADDED.get(func)]
            x, last = args[next(i for i in tensors if i != position)], position == tensors[-1]
            seen.fan_in = weight.shape[-2] if last and weight.ndim > 1 else weight.shape[-1]
            seen.rows += x.numel() // seen.fan_in
        square = _mean_square(x)
        seen.inputs.append(square)
        if self.first is None:
            seen.inits.append(_mean_square(weight) * square * seen.fan_in)

    def _change(self, name: str) -> torch.Tensor:
        if name not in self._changes:
            assert self.first is not None
            self._changes[name] = self.parameters[name] - self.first[name]
        return self._changes[name]

    def _multiply(self, use: Use, factor: Any, out: torch.Tensor) -> None:
        """What is looked up in a table may be multiplied by numbers after it, by a scale node or by the model."""
        if isinstance(factor, torch.Tensor) and factor.ndim > 0:
            return
        if float(factor) not in self._of_products:
            self.found[use].multiply_last(float(factor))
            self._looked_up = use, out

    def _attend(self, logits: torch.Tensor) -> None:
        seen = self.found.setdefault(Use("", LOGITS, self._attentions), Seen())
        self._attentions += 1
        seen.outputs.append(torch.where(logits > MASKED, logits, 0.0).detach())


def _factors_before_products(module: nn.Module) -> frozenset[float]:
    """Factors of the scale nodes that stand before the next layer, and of none that stands behind a lookup."""
    before, behind = set[float](), set[float]()
    for graph in module.graphs if isinstance(module, EmittedModule) else ():
        for node in scale_nodes(graph):
            scaled, factor = node.args
            of_result = isinstance(scaled, fx.Node) and node.name.startswith(f"{scaled.name}_scale")
            (behind if of_result else before).add(float(factor))  # type: ignore[arg-type]
    return frozenset(before - behind)


def _place(tensor: Any) -> int:
    return tensor.untyped_storage().data_ptr() if isinstance(tensor, torch.Tensor) else -1


def _fused_logits(args: Any, kwargs: Any) -> torch.Tensor:
    query, key = args[0], args[1]
    scale = kwargs.get("scale")
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if key.shape[1] != query.shape[1]:  # groups of queries share a key
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    product: torch.Tensor = (query.float() @ key.float().transpose(-1, -2)) * factor
    return product
