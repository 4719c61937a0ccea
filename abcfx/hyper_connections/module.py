"""Manifold-constrained hyper-connections as modules: n residual streams, read, written and mixed by learned weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abcfx.hyper_connections.shapes import check_ends, check_generator, check_streams
from abcfx.hyper_connections.sinkhorn_iterations import normalised
from abcfx.support.numbers import check_number, check_whole

INIT_SCALE = 0.1


class StreamWeights(NamedTuple):
    """The weights with which a hyper-connection reads, writes and mixes its n residual streams, for each token.

    Attributes:
        read: factor of each stream in the layer's input, (..., n).
        write: factor with which the layer's output is added to each stream, (..., n).
        mix: matrix that mixes the streams, (..., n, n).

    The same type holds the logits of these weights.
    """

    read: Tensor
    write: Tensor
    mix: Tensor


def mixing_values(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute the mixing values of each token, from which its gates and its mixing matrix follow: weight @ x / rms(x).

    Args:
        x: the n residual streams of width d, (..., n, d).
        weight: (k, n d), with k = (2 + n) n for a hyper-connection and n for a head.
        eps: added to the mean square.

    Returns:
        Mixing values (..., k), in the precision of the weight.
    """
    flat = x.flatten(-2).to(weight.dtype)
    return F.linear(flat, weight) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def split_values(values: Tensor, scale: Tensor, base: Tensor, streams: int) -> StreamWeights:
    """Compute the logits of read gates, write gates and mixing matrix from mixing values: values * scale + base.

    Args:
        values: mixing values, (..., n + n + n^2), in the order read | write | mix.
        scale: (3,), one factor for each of the three.
        base: (n + n + n^2,), added to the values.
        streams: number n of residual streams.

    Returns:
        Logits `read` and `write` (..., n) and `mix` (..., n, n).
    """
    n = streams
    read, write, mix = torch.split(values, [n, n, n * n], -1)
    read_base, write_base, mix_base = torch.split(base, [n, n, n * n])
    return StreamWeights(
        read * scale[0] + read_base,
        write * scale[1] + write_base,
        torch.unflatten(mix * scale[2] + mix_base, -1, (n, n)),
    )


def stream_weights(
    x: Tensor, weight: Tensor, scale: Tensor, base: Tensor, streams: int, iters: int = 20, eps: float = 1e-6
) -> StreamWeights:
    """Compute each token's gates and mixing matrix over n residual streams, as DeepSeek V4's inference code does.

    m = weight @ x / rms(x), cut into read | write | mix; read = sigmoid(m s0 + b) + eps, write = 2 sigmoid(m s1 + b),
    mix = sinkhorn(m s2 + b), where s0, s1, s2 are the scales and b the bases.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight: the generator, which computes the mixing values m, ((2 + n) n, n d).
        scale: (3,), one each for read, write and mix.
        base: ((2 + n) n,).
        streams: number n of streams.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1).
        eps: added in `sinkhorn`, in the norm and to the read gate.

    Returns:
        `read` and `write` (..., n), `mix` (..., n, n).
    """
    check_whole("stream_weights: streams", streams)
    check_whole("stream_weights: iters", iters)
    check_streams("stream_weights: x", x, streams)
    check_generator(x, weight, scale, base)
    logits = split_values(mixing_values(x, weight, eps), scale, base, streams)
    return StreamWeights(
        torch.sigmoid(logits.read) + eps, 2 * torch.sigmoid(logits.write), normalised(logits.mix, iters, eps)
    )


class HyperConnection(nn.Module):
    """Residual connection over n streams of width d around one layer: y = layer(read x), x <- write y + mix^T x.

    Where a usual residual connection adds a layer's output to one stream of activations, this one keeps n. The state x
    is (..., n, d); it starts as n copies of the embedding and ends in a `HyperHead`. The weights read, write and mix
    are computed from x itself, token by token (see `stream_weights`), and mixing uses the TRANSPOSED matrix: the new
    x_k = write_k y + sum_j mix[j, k] x_j.

    At init gates are near their middle (read 1/2, write 1) and the mix is near 1/n everywhere, which makes independent
    streams alike. For a residual that starts as the identity, set the diagonal of the mix's base to 4 or more:
    `connection.base.data[2 * n :].view(n, n).fill_diagonal_(6.0)`.

    Args:
        dim: width d of a stream.
        streams: number n of streams.
        sinkhorn_iters: number of iterations that make the mixing matrix doubly stochastic.
        eps: added in the norm, to the read gate and in `sinkhorn`.

    Raises:
        InvalidInputError: a number is below 1.

    Example:
        >>> connection, layer = HyperConnection(dim=8), nn.Linear(8, 8)
        >>> x = torch.randn(2, 4, 8)  # two tokens, four streams
        >>> y, write, mix = connection(x)
        >>> connection.update(x, layer(y), write, mix).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, dim: int, streams: int = 4, sinkhorn_iters: int = 20, eps: float = 1e-6) -> None:
        super().__init__()
        _check(dim, streams, sinkhorn_iters, eps)
        self.dim, self.streams, self.sinkhorn_iters, self.eps = dim, streams, sinkhorn_iters, eps
        self.weight = nn.Parameter(torch.empty((2 + streams) * streams, streams * dim))
        self.scale = nn.Parameter(torch.empty(3))
        self.base = nn.Parameter(torch.empty((2 + streams) * streams))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight, which computes gates and mix, from N(0, 1 / fan_in); set scales to 0.1 and bases to 0."""
        _reset(self.weight, self.scale, self.base)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's input (..., d), and write gates (..., n) and mixing matrix (..., n, n) for `update`.

        Args:
            x: the n residual streams, (..., n, d).

        Raises:
            InvalidInputError: x is no such tensor.
        """
        read, write, mix = self.weights(x)
        return (read.to(x.dtype).unsqueeze(-1) * x).sum(-2), write.to(x.dtype), mix.to(x.dtype)

    def weights(self, x: Tensor) -> StreamWeights:
        """Compute the gates and the matrix that read, write and mix the n residual streams, for each token.

        Args:
            x: the streams, (..., n, d).

        Returns:
            `read` and `write` (..., n), `mix` (..., n, n), in the precision of the parameters.
        """
        check_streams("HyperConnection: x", x, self.streams, self.dim)
        return stream_weights(x, self.weight, self.scale, self.base, self.streams, self.sinkhorn_iters, self.eps)

    def update(self, x: Tensor, out: Tensor, write: Tensor, mix: Tensor) -> Tensor:
        """Return the n residual streams after the layer: mix^T x + write * out, of shape (..., n, d).

        Args:
            x: the streams before the layer, (..., n, d).
            out: the layer's output, (..., d).
            write: write gates, (..., n), as `forward` returned them.
            mix: mixing matrix, (..., n, n), as `forward` returned it.

        Raises:
            InvalidInputError: one of them is no such tensor.
        """
        n = self.streams
        check_streams("HyperConnection.update: x", x, n, self.dim)
        check_ends("HyperConnection.update: out", out, "the layer's output", self.dim)
        check_ends("HyperConnection.update: write", write, "the write gates", n)
        check_ends("HyperConnection.update: mix", mix, "the mixing matrix", n, n)
        return write.unsqueeze(-1) * out.unsqueeze(-2) + mix.mT @ x

    def extra_repr(self) -> str:
        """Return the settings for `repr(module)`."""
        return f"dim={self.dim}, streams={self.streams}, sinkhorn_iters={self.sinkhorn_iters}, eps={self.eps}"


class HyperHead(nn.Module):
    """Sum of n residual streams (..., n, d) into one (..., d), weighted by gates that are computed from the streams x.

    The result is sum_j sigmoid(m_j s + b_j) x_j, where m = weight @ x / rms(x), s is a learned scale and b learned
    bases.

    Args:
        dim: width d of a stream.
        streams: number n of streams.
        eps: added in the norm and to the gates.
    """

    def __init__(self, dim: int, streams: int = 4, eps: float = 1e-6) -> None:
        super().__init__()
        _check(dim, streams, 1, eps)
        self.dim, self.streams, self.eps = dim, streams, eps
        self.weight = nn.Parameter(torch.empty(streams, streams * dim))
        self.scale = nn.Parameter(torch.empty(1))
        self.base = nn.Parameter(torch.empty(streams))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight, which computes the gates, from N(0, 1 / fan_in); set the scale to 0.1 and bases to 0."""
        _reset(self.weight, self.scale, self.base)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum (..., d) of the n residual streams x (..., n, d), weighted by gates computed from them."""
        check_streams("HyperHead: x", x, self.streams, self.dim)
        read = torch.sigmoid(mixing_values(x, self.weight, self.eps) * self.scale + self.base) + self.eps
        return (read.to(x.dtype).unsqueeze(-1) * x).sum(-2)

    def extra_repr(self) -> str:
        """Return the settings for `repr(module)`."""
        return f"dim={self.dim}, streams={self.streams}, eps={self.eps}"


def _reset(weight: Tensor, scale: Tensor, base: Tensor) -> None:
    """Draw the weight of a hyper-connection from N(0, 1 / fan_in), set its scale to 0.1 and its base to 0, in place.

    The three compute the gates and the matrix with which n residual streams are read, written and mixed.
    """
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    nn.init.constant_(scale, INIT_SCALE)
    nn.init.zeros_(base)


def _check(dim: int, streams: int, iters: int, eps: float) -> None:
    """Raise InvalidInputError for sizes or numbers of iterations below 1, and for a negative eps."""
    for name, value in (("dim", dim), ("streams", streams), ("sinkhorn_iters", iters)):
        check_whole(f"hyper-connection: {name}", value)
    check_number("hyper-connection: eps", eps, at_least=0)
