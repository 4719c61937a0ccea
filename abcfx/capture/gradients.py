"""Compare the gradients of two runs without storing them.

Most gradients are compared by random projections, `fingerprints`. For parameters so large that even one gradient of
theirs takes too much memory, the operations that hand gradient to them are compared instead: their `routes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.graph import Node

_SEED = 20_240
# A parameter whose gradient takes more than this and more than this share of all weights (a tied token embedding) is
# compared by routes: autograd would hold two or three copies of that gradient at once.
_LARGE_BYTES = 64_000_000
_LARGE_SHARE = 0.05
# Reentrant checkpoints run a backward of their own, which torch refuses when only some gradients are asked for.
_NEEDS_ALL = "CheckpointFunctionBackward"

Routes = tuple[str, ...]


def large_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the trained parameters whose gradient is too large to be computed just for a check."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = {name: parameter.numel() * parameter.element_size() for name, parameter in trained.items()}
    limit = max(_LARGE_BYTES, _LARGE_SHARE * sum(sizes.values()))
    return frozenset(name for name, size in sizes.items() if size > limit)


class Gradients:
    """The gradients of one backward pass, reduced to what is small enough to keep and to compare.

    Args:
        model: the model whose parameters get the gradients.
        large: names of the parameters whose gradient is not computed; only its routes (see below) are compared.

    Attributes:
        fingerprints: by parameter, random projections of its gradient.
        routes: by large parameter, the kinds of autograd nodes that hand gradient to it, as often as they do.
    """

    def __init__(self, model: nn.Module, large: frozenset[str]) -> None:
        """Keep the model's trained parameters and the names of the large ones; a backward pass then fills the rest."""
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.large = large
        self.fingerprints: dict[str, torch.Tensor] = {}
        self.routes: dict[str, Routes] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Replace each gradient of a backward pass within the block, when it is there, by a few random projections.

        On exit every `.grad` is as it was before.
        """
        saved = [(parameter, parameter.grad) for parameter in self.parameters.values()]
        handles = []
        for name, parameter in self.parameters.items():
            parameter.grad = None
            handles.append(parameter.register_post_accumulate_grad_hook(self._hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, gradient in saved:
                parameter.grad = gradient

    def backward(self, outputs: Iterable[object]) -> None:
        """Run a backward pass from the sum of all outputs times random weights, which itself is never computed.

        Args:
            outputs: what the model returned; anything but tensors with gradients is skipped.
        """
        roots: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        generator = torch.Generator().manual_seed(_SEED)
        for value in outputs:
            if isinstance(value, torch.Tensor) and value.requires_grad:
                real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
                roots.append(real)
                weights.append(_random_weights(real.detach(), generator))
        if not roots:
            return
        asked = None
        if self.large:
            consumers = routes(roots, {id(self.parameters[name]): name for name in self.large})
            self.routes = {name: consumers.get(name, ()) for name in self.large}
            if _NEEDS_ALL not in consumers:
                asked = [parameter for name, parameter in self.parameters.items() if name not in self.large]
        if asked is None or asked:
            torch.autograd.backward(roots, weights, inputs=asked)

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        """Return the hook that adds a random projection of the gradient of parameter `name` to what is kept of it."""

        def hook(parameter: torch.Tensor) -> None:
            """Add a random projection of the gradient that the parameter has got, and free the gradient."""
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            found = _fingerprint(gradient)
            previous = self.fingerprints.get(name)
            self.fingerprints[name] = found if previous is None else previous + found

        return hook


def routes(roots: Sequence[torch.Tensor], wanted: Mapping[int, str]) -> dict[str, Routes]:
    """Return for each parameter the kinds of autograd nodes that hand gradient to it, one for each edge to it.

    This needs no backward pass, so it costs no memory.

    Args:
        roots: the tensors from which a backward pass would start.
        wanted: names of the parameters, by their ids.

    Returns:
        The names of the nodes' classes by parameter. If a reentrant checkpoint is on the way, whose inner nodes are not
        part of the graph, the key "CheckpointFunctionBackward" is there as well, with no names.
    """
    found: dict[str, list[str]] = {}
    for node, following in _edges(roots):
        kind = type(node).__name__
        if kind == _NEEDS_ALL:
            found.setdefault(kind, [])
        name = None if following is None else wanted.get(id(getattr(following, "variable", None)))
        if name is not None:
            found.setdefault(name, []).append(kind)
    return {name: tuple(sorted(kinds)) for name, kinds in found.items()}


def leaves_of(roots: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the leaf tensors to which a backward pass from `roots` would hand gradient, some of them more than once."""
    for _, following in _edges(roots):
        leaf = getattr(following, "variable", None)
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _edges(roots: Iterable[torch.Tensor]) -> Iterator[tuple[Node, Node | None]]:
    """Yield every edge (node, next node) of the autograd graph that a backward pass from the roots would follow."""
    # Nodes are compared as Python objects, which live as long as somebody holds them: this dict does.
    seen: dict[Node, None] = dict.fromkeys(root.grad_fn for root in roots if root.grad_fn is not None)
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions:
            yield node, following
            if following is not None and following not in seen:
                seen[following] = None
                waiting.append(following)


def _random_weights(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers of a tensor's shape, with 0 where the tensor is not finite."""
    weights = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    finite = value.isfinite()
    # Masked positions hold -inf by design; they carry no gradient.
    return weights if bool(finite.all()) else weights.masked_fill_(finite.logical_not_(), 0.0)


def _fingerprint(gradient: torch.Tensor) -> torch.Tensor:
    """Return a small vector for a gradient: the gradient as a matrix, times a random row and times a random column.

    The matrix is as square as the dims of the gradient allow.
    """
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    splits = [math.prod(real.shape[:dim]) for dim in range(1, real.dim())] or [max(real.numel(), 1)]
    rows = min(splits, key=lambda count: count + real.numel() // max(count, 1))
    matrix = real.float().reshape(rows, -1) if real.numel() else real.new_zeros(1, 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(_SEED)
    left = torch.randn(matrix.shape[0], generator=generator).to(matrix)
    right = torch.randn(matrix.shape[1], generator=generator).to(matrix)
    return torch.cat((matrix @ right / math.sqrt(len(right)), left @ matrix / math.sqrt(len(left))))
