"""Rules of Fourier transforms. One over n entries multiplies the RMS entry by sqrt(n), exactly, and `norm` may divide.

Parseval: the sum of squares of what comes out is n times that of what goes in, for the change as well as for the size.
"""

from __future__ import annotations

from collections.abc import Sequence

from abcfx.rules.extents import Number
from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Dims, Value

_INVERSE = frozenset(f"fft_{name}{dims}" for name in ("ifft", "irfft", "ihfft") for dims in ("", "2", "n"))
_RETURNS_REAL = frozenset({"fft_irfft", "fft_hfft"})  # of half of the entries; `n` says how many all of them are


@register_rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
def fourier(op: Op, x: Value, n: object = None, dim: int = -1, norm: str | None = None) -> Value:
    """Handle a Fourier transform (torch.fft.fft and the like) over one dim of n entries.

    The RMS entry becomes sqrt(n) times as large, which `norm` may divide out.
    """
    return _transform(op, x, [dim], [n], norm)


@register_rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_hfft2", "fft_ihfft2")
def fourier2(op: Op, x: Value, s: object = None, dim: Dims = (-2, -1), norm: str | None = None) -> Value:
    """Handle a Fourier transform over two dims, by default the last two: sqrt(n) times as large for each."""
    return fourier_n(op, x, s, dim, norm)


@register_rule("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn", "fft_ihfftn")
def fourier_n(op: Op, x: Value, s: object = None, dim: Dims = None, norm: str | None = None) -> Value:
    """Handle a Fourier transform over several dims: sqrt(n) times as large for each dim of n entries.

    By default that is over all dims, or over as many of the last ones as `s` has sizes. `norm` may divide the factor
    out.
    """
    sizes = list(s) if isinstance(s, Sequence) else None
    dims = [dim] if isinstance(dim, int) else dim
    if dims is None:
        count = (x.ndim or 0) if sizes is None else len(sizes)
        dims = range(-count, 0)
    return _transform(op, x, dims, sizes or [None] * len(dims), norm)


def _transform(op: Op, x: Value, dims: Sequence[int], sizes: Sequence[object], norm: str | None) -> Value:
    """Scale x as a Fourier transform does: by sqrt(n) for each dim of n entries, over n or sqrt(n) as `norm` says.

    Args:
        op: the op of the traced graph, whose name says which way it transforms.
        x: the tensor that is transformed.
        dims: indices of the dims over which it is transformed.
        sizes: number of entries for each dim, to which torch pads or cuts it; None for those that it has.
        norm: "backward" (None is the same), which divides the inverse transform by n; "forward"; "ortho".
    """
    if norm == "ortho":
        return op.same(x)
    name = str(plain_name(op.at.target))
    divides = (name in _INVERSE) == (norm != "forward")
    factor = Number()
    for dim, size in zip(dims, sizes, strict=True):
        entries = x.dim(dim)
        own = Number() if entries is None else Number(((entries, 1.0),))
        given = None if size is None else op.number(size, 1, "n") if len(sizes) == 1 else own
        cuts = isinstance(size, int) and x.shape is not None and size < x.shape[dim]
        summed = given if given is not None and (cuts or name in _RETURNS_REAL) else own
        factor = factor.times(summed.power(0.5))
        if divides:
            factor = factor.times((given or own).power(-1.0))
    return op.scale(x, factor) if factor.powers else op.same(x)


@register_rule("fft_fftshift", "fft_ifftshift")
def shifted(op: Op, x: Value, dim: Dims = None) -> Value:
    """Handle torch.fft.fftshift and its inverse: entries are moved, and stay as large as they are."""
    return op.view(x)


@register_rule("fft_c2c", "fft_r2c", "fft_c2r")
def fourier_kernel(op: Op, x: Value, dim: Sequence[int], normalization: int, *_: object) -> Value:
    """Handle aten._fft_c2c and its kin: Fourier transforms over dims of n entries, as exported graphs have them.

    The RMS entry becomes sqrt(n) times as large for `normalization` 0, stays as large as it is for 1, and shrinks by
    sqrt(n) for 2.
    """
    factor = Number(tuple((each, 0.5 * (1 - normalization)) for each in x.dims_at(dim)))
    return op.scale(x, factor) if factor.powers and normalization != 1 else op.same(x)


@register_rule("stft")
def stft(
    op: Op,
    x: Value,
    n_fft: object,
    hop_length: object = None,
    win_length: object = None,
    window: Value | None = None,
    center: bool = True,
    pad_mode: object = "reflect",
    normalized: bool = False,
    *_: object,
) -> Value:
    """Handle torch.stft: stretches of n_fft entries are multiplied by `window` and Fourier transformed.

    The RMS entry becomes sqrt(n_fft) times as large, unless the transform is normalized.
    """
    is_divided = normalized if isinstance(pad_mode, str) else center  # aten has an overload without the two
    return _windowed(op, x, op.number(n_fft, 1, "n_fft").power(0.5), window, is_divided)


@register_rule("istft")
def istft(
    op: Op,
    x: Value,
    n_fft: object,
    hop_length: object = None,
    win_length: object = None,
    window: Value | None = None,
    center: bool = True,
    normalized: bool = False,
    *_: object,
) -> Value:
    """Handle torch.istft, the inverse of stft: entries are divided by sqrt(n_fft), unless it is normalized."""
    return _windowed(op, x, op.number(n_fft, 1, "n_fft").power(-0.5), window, normalized)


def _windowed(op: Op, x: Value, factor: Number, window: Value | None, is_divided: bool) -> Value:
    """Return x times the factor of a windowed Fourier transform, and times the window if training changes that.

    Args:
        op: the op of the traced graph.
        x: the tensor that is transformed.
        factor: the number by which the transform multiplies the RMS entry.
        window: the window; None for none.
        is_divided: True if the transform divides the factor out itself, so that entries stay as large as they are.
    """
    y = op.same(x) if is_divided else op.scale(x, factor)
    return y if window is None or window.is_constant else op.product(y, window)
