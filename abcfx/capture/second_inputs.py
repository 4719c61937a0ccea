"""Second inputs for a check: other batch, other length, other values, padded masks, mildest last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from abcfx.support import trees

_SEED = 7
_FEW_TOKENS = 65


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, and in words how they differ from the examples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    label: str
    varied: bool = True

    def fresh_args(self) -> Any:
        """The positional arguments with copied tensors, since a model may write into its inputs."""
        return trees.map_tensors(_copy, self.args)

    def fresh_kwargs(self) -> Any:
        """The keyword arguments, copied likewise."""
        return trees.map_tensors(_copy, self.kwargs)


def variations(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Inputs]:
    """The example inputs changed in several ways; a caller takes the first that the model accepts."""
    tensors = [tensor for tensor in trees.tensors((args, kwargs)) if tensor.dim()]
    first = tensors[0] if tensors else torch.empty(0)
    batch = first.shape[0]
    for other in _other_lengths(first) if first.dim() in (2, 3) else ():
        label = f"other batch, length {other} for {first.shape[1]}"
        yield _vary(args, kwargs, batch, (first.shape[1], other), label, values=True)
    if tensors:
        yield _vary(args, kwargs, batch, None, "other batch and values", values=True)
        yield _vary(args, kwargs, batch, None, "other batch", values=False)
        yield _vary(args, kwargs, None, None, "other values", values=True)
    yield Inputs(args, kwargs, "the example inputs themselves", varied=False)


def _vary(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: int | None,
    lengths: tuple[int, int] | None,
    label: str,
    *,
    values: bool,
) -> Inputs:
    """The inputs with another batch, with the first of the two lengths replaced by the second, with other values."""
    generator = torch.Generator().manual_seed(_SEED)

    def change(path: str, leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0:
            return leaf
        leaf = leaf.detach()
        ascending = _is_ascending(leaf)
        if batch is not None and leaf.shape[0] == batch:
            leaf = _resized(leaf, 0, 4 if batch != 4 else 5)
        for dim in range(1, leaf.dim()):
            if lengths is not None and leaf.shape[dim] == lengths[0]:
                leaf = _resized(leaf, dim, lengths[1])
        # Integers in one ascending row may be offsets or segments, which mean nothing in another order.
        if ascending:
            return leaf.sort().values
        return _revalued(leaf, path, generator) if values else leaf

    new_args, new_kwargs = trees.map_leaves_by_path(change, (args, kwargs))
    return Inputs(new_args, new_kwargs, label)


def _other_lengths(first: torch.Tensor) -> list[int]:
    """Shorter for long inputs, which is cheap and within every limit on length; longer for short ones.

    Much shorter for long rows of tokens, since each takes a step of training of the whole model.
    """
    length = first.shape[1]
    half = length // 2 + 1 if length > 8 else length + 2
    return [_FEW_TOKENS, half] if _is_whole(first) and half > _FEW_TOKENS else [half]


def _resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    repeats = -(-size // max(tensor.shape[dim], 1))
    return torch.cat([tensor] * repeats, dim).narrow(dim, 0, size)


def _revalued(tensor: torch.Tensor, path: str, generator: torch.Generator) -> torch.Tensor:
    """The tensor's own values drawn anew, so that ids stay valid; a mask becomes one with padding at the end."""
    flat = tensor.reshape(-1)
    if not len(flat):
        return tensor
    binary = _is_whole(tensor) and bool(((flat == 0) | (flat == 1)).all())
    if "mask" in path and binary and tensor.dim() == 2:
        kept = torch.randint((tensor.shape[1] + 1) // 2, tensor.shape[1] + 1, (tensor.shape[0], 1), generator=generator)
        return (torch.arange(tensor.shape[1]) < kept).to(tensor)
    return flat[torch.randint(len(flat), (len(flat),), generator=generator).to(flat.device)].reshape(tensor.shape)


def _is_ascending(tensor: torch.Tensor) -> bool:
    return _is_whole(tensor) and tensor.dim() == 1 and len(tensor) > 1 and bool((tensor[1:] >= tensor[:-1]).all())


def _is_whole(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
