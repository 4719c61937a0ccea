"""`abcfx.dynamic.measure` finds the alignments of layers that were made with known ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F

import abcfx
from abcfx.dynamic.measured import Norm, measure

N = 4096


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_independent_factors_have_one_half() -> None:
    z0, w0 = torch.randn(64, N), torch.randn(64, N)
    found = measure(z0, w0, z0 + torch.randn(64, N), w0 + torch.randn(64, N), N)
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=0.02)


def test_updates_along_the_input_have_one() -> None:
    x = torch.randn(1, N)
    z0 = torch.randn(64, 1) * x  # tokens along one direction, as an update by a batch's gradient sees them
    w0 = torch.randn(64, N)
    found = measure(z0, w0, z0 * 1.5, w0 + torch.randn(64, 1) * x, N)
    assert found.alpha == pytest.approx(1.0, abs=0.02) and found.u == pytest.approx(1.0, abs=0.02)
    assert found.omega == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("norm", ["rms", "spectral"])
def test_a_term_without_change_is_absent(norm: Norm) -> None:
    z0, w0 = torch.randn(8, 32), torch.randn(16, 32)
    z, w = z0 + 0.1, w0 + 0.1
    assert measure(z0, w0, z0, w0, 32, norm) == (None, None, None)
    only_weights = measure(z0, w0, z0, w, 32, norm)
    assert only_weights.alpha is not None and only_weights.omega is None and only_weights.u is None
    only_inputs = measure(z0, w0, z, w0, 32, norm)
    assert only_inputs.alpha is None and only_inputs.omega is not None and only_inputs.u is None
    assert None not in measure(z0, w0, z, w, 32, norm)
    assert measure(z0, w0, z, w, 1) == (None, None, None)  # one term: nothing to align


@pytest.mark.parametrize("size", [1e-20, 1e-35, 1e18, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_size_does_not_matter(size: float, dtype: torch.dtype) -> None:
    z0, w0 = torch.randn(8, 64), torch.randn(16, 64)
    z, w = z0 + torch.randn(8, 64), w0 + torch.randn(16, 64)
    expected = measure(z0, w0, z, w, 64)
    sized = [(tensor.double() * size).to(dtype) for tensor in (z0, w0, z, w)]
    found = measure(sized[0], sized[1], sized[2], sized[3], 64)
    assert found == pytest.approx(expected, abs=0.02 if dtype == torch.bfloat16 else 1e-4)


def test_a_convolution_is_measured_by_its_own_product() -> None:
    z0, w0 = torch.randn(4, 64, 6, 6), torch.randn(32, 64, 3, 3)
    z, w = z0 + torch.randn(4, 64, 6, 6), w0 + torch.randn(32, 64, 3, 3)
    found = measure(z0, w0, z, w, 64 * 9, multiply=lambda x, y: F.conv2d(x, y))
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=0.03)


def aligned(*shape: int) -> torch.Tensor:
    """Draw rows along one direction for each leading index: products of such tensors sum terms of one sign."""
    direction = torch.randn(shape[-1], generator=torch.Generator().manual_seed(5))
    return torch.randn(*shape[:-1], 1) * direction


@pytest.mark.parametrize("kind", ["experts", "attention logits", "convolution", "transformed by einsum"])
@pytest.mark.parametrize("expected, draw", [(0.5, torch.randn), (1.0, aligned)])
def test_products_of_other_layers(kind: str, expected: float, draw: Callable[..., torch.Tensor]) -> None:
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    fan_in = N
    if kind == "experts":  # a stack of matrices, each with tokens of its own
        z, w, dz, dw = (draw(4, rows, N) for rows in (16, 32, 16, 32))
    elif kind == "attention logits":  # queries for z, keys for w: (batch, heads, tokens, head_dim)
        z, w, dz, dw = (draw(2, 2, 16, N) for _ in range(4))
    elif kind == "convolution":
        z, dz = (draw(4, 6, 6, 512).movedim(-1, 1) for _ in range(2))
        w, dw = (draw(32, 3, 3, 512).movedim(-1, 1) for _ in range(2))
        multiply, fan_in = F.conv2d, 512 * 9
    else:
        z, dz, w, dw = draw(16, N), draw(16, N), draw(4, 8, N), draw(4, 8, N)
        multiply = lambda x, y: torch.einsum("tn,ern->tre", x, y)  # noqa: E731
    found = measure(z, w, z + dz, w + dw, fan_in, multiply=multiply)
    slack = 0.02 if kind != "convolution" or expected == 0.5 else 0.15  # nine places of one kernel are not aligned
    assert found == pytest.approx((expected,) * 3, abs=slack)


def test_a_lookup_aligns_with_nothing() -> None:
    ids, table = torch.tensor([1, 3]), torch.randn(8, 16)
    assert measure(ids, table, ids, table + 1.0, 1) == (None, None, None)


def test_numbers_that_are_none_leave_a_term_absent() -> None:
    z0, w0 = torch.randn(8, 64), torch.randn(16, 64)
    w = w0 + 1.0
    w[0, 0] = float("nan")
    assert measure(z0, w0, z0 + 1.0, w, 64)[0] is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"one shape .*\(3, 4\)"):
        measure(torch.ones(3, 4), torch.ones(5, 6), torch.ones(3, 4), torch.ones(5, 6), 4)
    with pytest.raises(abcfx.errors.InvalidInputError, match="rms"):
        measure(torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 4), torch.ones(5, 4), 4, norm=cast("Norm", "max"))
