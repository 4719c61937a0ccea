"""Bring example inputs into the form that a capture needs, with a batch that is not mistaken for a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from abcfx.errors import InvalidInputError
from abcfx.support import arguments, trees

# Sizes 0 and 1 are special to torch.export and 2 is a common constant in models; 3 is neither.
MIN_BATCH = 3

# The sizes of inputs that stay open in a graph: see `free_dims`.
OpenSizes = Literal["free", "batch", "fixed"]


def canonical(
    args: object, kwargs: Mapping[str, object] | None
) -> tuple[tuple[object, ...] | None, dict[str, object] | None]:
    """Return example inputs as a tuple and a dict, or None for both when there are no inputs at all.

    A bare tensor counts as one positional argument, a list as a tuple. Tensors made under `torch.inference_mode()` are
    copied, since autograd refuses them.

    Raises:
        InvalidInputError: an input is a NestedTensor, or empty; keyword inputs are no dict.
    """
    arguments.keywords("kwargs", kwargs)
    if args is None and not kwargs:
        return None, None
    positional = () if args is None else tuple(args) if isinstance(args, (tuple, list)) else (args,)
    if any(not tensor.is_nested and 0 in tensor.shape for tensor in trees.tensors((positional, kwargs))):
        raise InvalidInputError(
            "args: an example input has no entries (a dim of size 0), so nothing can be compared on it.\n"
            "  To fix: give inputs with a batch of at least one."
        )
    return trees.map_tensors(_usable, (positional, dict(kwargs or {})))


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """Return an input that a capture can take: the tensor, or a copy if it was made in inference mode.

    Raises:
        InvalidInputError: it is a NestedTensor, whose sizes no graph can hold.
    """
    if tensor.is_nested:
        raise InvalidInputError(
            "An example input is a NestedTensor, whose sizes no graph can hold.\n"
            "  To fix: give a padded one, torch.nested.to_padded_tensor(x, 0.0): the plan depends on weights alone."
        )
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def tiled(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return example inputs whose batch of 1 or 2 samples is repeated until it has 3; a larger batch stays as it is.

    The batch is the first dim of the first tensor. Every tensor whose first dim has that size is repeated.
    """
    tensors = [tensor for tensor in trees.tensors((args, kwargs)) if tensor.dim() > 0]
    if not tensors or tensors[0].shape[0] not in range(1, MIN_BATCH):
        return args, kwargs
    batch = tensors[0].shape[0]

    def tile(tensor: torch.Tensor) -> torch.Tensor:
        """Repeat a tensor whose first dim is the batch until it has 3 samples."""
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            return tensor
        return torch.cat([tensor] * MIN_BATCH)[:MIN_BATCH].detach()

    return trees.map_tensors(tile, (args, kwargs))


def free_dims(tensors: Mapping[str, torch.Tensor], *, sizes: OpenSizes = "free") -> dict[str, frozenset[int]]:
    """Choose the dims of each input that may have other sizes in later calls; the others are held to their size.

    All dims of sequences are free. Of floating-point tensors with four dims or more (images) only the batch and the
    dims as long as a sequence are: algebra over free heights and widths takes torch minutes for windowed attention.

    Args:
        tensors: the example inputs by name.
        sizes: "free" for the choice above; "batch" for the first dim only; "fixed" for none, which takes torch least
            time.

    Returns:
        The indices of the free dims of each input, by its name.
    """
    if sizes == "fixed":
        return dict.fromkeys(tensors, frozenset())
    if sizes == "batch":
        return {name: frozenset(range(min(tensor.dim(), 1))) for name, tensor in tensors.items()}
    sequences = [tensor for tensor in tensors.values() if not _is_image(tensor)]
    lengths = {size for tensor in sequences for size in tensor.shape[1:2]}
    return {
        name: frozenset(
            dim
            for dim, size in enumerate(tensor.shape)
            if dim == 0 or not _is_image(tensor) or (size in lengths and dim >= 2)
        )
        for name, tensor in tensors.items()
    }


def _is_image(tensor: torch.Tensor) -> bool:
    """Whether a tensor is taken for images: floating-point, with four dims or more."""
    return tensor.dim() >= 4 and tensor.is_floating_point()
