"""Shapes of the tensors of hyper-connections, which keep n residual streams of width d, checked by name."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from abcfx.errors import InvalidInputError
from abcfx.support.arguments import wrong


def check_ends(option: str, value: object, what: str, *sizes: int) -> None:
    """Refuse what is no floating-point tensor with these sizes at its end; a stand-in of torch.fx passes.

    Args:
        option: name of the argument; it begins the message.
        value: the user's value.
        what: what the argument is, for the message.
        sizes: sizes of its last dims.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(value, fx.Proxy):
        return
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= len(sizes)
    if not fits or not isinstance(value, Tensor) or value.shape[value.ndim - len(sizes) :] != torch.Size(sizes):
        raise wrong(option, value, f"{what}, a floating-point tensor (..., {', '.join(map(str, sizes))})")


def check_streams(option: str, x: object, streams: int, dim: int | None = None) -> None:
    """Refuse what are no residual streams (..., n, d); a stand-in of torch.fx passes.

    Args:
        option: name of the argument; it begins the message.
        x: the user's value.
        streams: n.
        dim: d; None allows every width.

    Raises:
        InvalidInputError: it is something else.
    """
    if dim is None:
        dim = x.shape[-1] if isinstance(x, Tensor) and x.ndim else 1
    check_ends(option, x, f"{streams} residual streams", streams, dim)


def check_generator(x: Tensor, weight: Tensor, scale: Tensor, base: Tensor) -> None:
    """Check that the parameters of a hyper-connection fit its streams; stand-ins of torch.fx pass.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight, scale, base: parameters: the generator ((2 + n) n, n d), scales (3,) and bases ((2 + n) n,).

    Raises:
        InvalidInputError: the shapes do not fit together.
    """
    if any(isinstance(each, fx.Proxy) for each in (x, weight, scale, base)):
        return
    for name, value in (("weight", weight), ("scale", scale), ("base", base)):
        if not isinstance(value, Tensor):
            raise wrong(f"hyper-connection: {name}", value, "a tensor")
    n, d = x.shape[-2:]
    k = (2 + n) * n
    if weight.shape[-2:] != (k, n * d) or scale.shape != (3,) or base.shape != (k,):
        shapes = ", ".join(str(tuple(each.shape)) for each in (x, weight, scale, base))
        raise InvalidInputError(
            f"hyper-connection: streams, generator, scales and bases of shapes {shapes} do not fit together.\n"
            f"  expected: x (..., n, d), weight ((2 + n) n, n d), scale (3,) and base ((2 + n) n,)."
        )
