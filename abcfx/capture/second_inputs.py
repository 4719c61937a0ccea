"""Make second inputs for the check of a graph: other batch, other length, other values, padded masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from abcfx.support import trees

_SEED = 7
_FEW_TOKENS = 65
_LARGE = 32  # height of an image that half of it stands for


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model, made from its example inputs for a check of its graph.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        label: how the arguments differ from the example inputs, in words.
        varied: False for the example inputs themselves.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]
    label: str
    varied: bool = True

    def fresh(self) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return positional and keyword arguments with copied tensors, since a model may write into its inputs."""
        return trees.map_tensors(_copy, self.args), trees.map_tensors(_copy, self.kwargs)


@dataclass(frozen=True)
class _Variation:
    """One way to change the example inputs of a model.

    Attributes:
        label: the change in words.
        batch: size of the examples' batch, if the batch is to get another size; else None.
        lengths: sizes that change, such as the length of a sequence, with the sizes after.
        from_dim: the first dim that has such a size.
        values: True if values change.
    """

    label: str
    batch: int | None = None
    lengths: Mapping[int, int] = field(default_factory=dict)
    from_dim: int = 1
    values: bool = True


def variations(args: tuple[object, ...], kwargs: dict[str, object]) -> Iterator[Inputs]:
    """Yield the example inputs changed in several ways, the mildest change last; then the examples themselves.

    A caller takes the first inputs that the model accepts.
    """
    tensors = [tensor for tensor in trees.tensors((args, kwargs)) if tensor.dim()]
    first = tensors[0] if tensors else torch.empty(0)
    batch = first.shape[0]
    ways: list[_Variation] = []
    for other in _other_lengths(first) if first.dim() in (2, 3) else ():
        label = f"other batch, length {other} for {first.shape[1]}"
        ways.append(_Variation(label, batch, {first.shape[1]: other}))
    if first.dim() in (4, 5):
        images = {size: size // 2 if size >= _LARGE and size % 2 == 0 else 2 * size for size in first.shape[2:]}
        label = f"other batch, {'x'.join(str(images[size]) for size in first.shape[2:])} in place of "
        ways.append(_Variation(label + "x".join(map(str, first.shape[2:])), batch, images, 2))
    if tensors:
        ways.append(_Variation("other batch and values", batch))
        ways.append(_Variation("other batch", batch, values=False))
        ways.append(_Variation("other values"))
    for way in ways:
        yield _vary(args, kwargs, way)
    yield Inputs(args, kwargs, "the example inputs themselves", varied=False)


def _vary(args: tuple[object, ...], kwargs: dict[str, object], way: _Variation) -> Inputs:
    """Return example inputs changed in one way: another batch, another length, or other values."""
    generator = torch.Generator().manual_seed(_SEED)

    def change(path: str, leaf: object) -> object:
        """Return one leaf of the example inputs changed as the variation asks; `path` is where it stands in them."""
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0:
            return leaf
        leaf = leaf.detach()
        ascending = _is_ascending(leaf)
        if way.batch is not None and leaf.shape[0] == way.batch:
            leaf = _resized(leaf, 0, 4 if way.batch != 4 else 5)
        for dim in range(way.from_dim, leaf.dim()):
            leaf = _resized(leaf, dim, way.lengths.get(leaf.shape[dim], leaf.shape[dim]))
        # Integers in one ascending row may be offsets or segments, which mean nothing in another order.
        if ascending:
            return leaf.sort().values
        return _revalued(leaf, path, generator) if way.values else leaf

    new_args, new_kwargs = trees.map_leaves_by_path(change, (args, kwargs))
    return Inputs(new_args, new_kwargs, way.label)


def _other_lengths(first: torch.Tensor) -> list[int]:
    """Return sequence lengths to try in place of that of `first`: shorter for long inputs, longer for short ones.

    A shorter one is cheap and within every limit. Long rows of tokens are tried much shorter first, since each try
    takes a training step of the whole model.
    """
    length = first.shape[1]
    half = length // 2 + 1 if length > 8 else length + 2
    return [_FEW_TOKENS, half] if _is_whole(first) and half > _FEW_TOKENS else [half]


def _resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Return a tensor repeated along a dim, and cut, so that the dim gets the given size."""
    if tensor.shape[dim] == size:
        return tensor
    repeats = -(-size // max(tensor.shape[dim], 1))
    return torch.cat([tensor] * repeats, dim).narrow(dim, 0, size)


def _revalued(tensor: torch.Tensor, path: str, generator: torch.Generator) -> torch.Tensor:
    """Return an input with its values drawn anew from those that it has, so that ids stay valid.

    A mask of zeros and ones becomes one with padding at the end of each row.

    Args:
        tensor: the input.
        path: where the input stands among the arguments, by which a mask is recognised.
        generator: the source of random numbers.
    """
    flat = tensor.reshape(-1)
    if not len(flat):
        return tensor
    binary = _is_whole(tensor) and bool(((flat == 0) | (flat == 1)).all())
    if "mask" in path and binary and tensor.dim() == 2:
        kept = torch.randint((tensor.shape[1] + 1) // 2, tensor.shape[1] + 1, (tensor.shape[0], 1), generator=generator)
        return (torch.arange(tensor.shape[1]) < kept).to(tensor)
    return flat[torch.randint(len(flat), (len(flat),), generator=generator).to(flat.device)].reshape(tensor.shape)


def _is_ascending(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a row of integers that never decrease, such as offsets."""
    return _is_whole(tensor) and tensor.dim() == 1 and len(tensor) > 1 and bool((tensor[1:] >= tensor[:-1]).all())


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds integers or booleans, and not floating-point or complex numbers."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor without history that requires a gradient if the tensor does."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
