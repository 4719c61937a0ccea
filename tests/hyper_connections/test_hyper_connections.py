"""The modules of hyper-connections equal those of DeepSeek V4 in transformers; they compile and differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

import abcfx
from abcfx.hyper_connections import (
    HyperConnection,
    HyperHead,
    gauge_projector,
    sinkhorn,
    sinkhorn_jacobian,
)
from abcfx.hyper_connections.sinkhorn_iterations import gauge_basis


def streams(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def randomised(module: ModuleT, std: float = 0.5) -> ModuleT:
    """Draw all parameters anew, each entry with one standard deviation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture
def deepseek() -> Any:
    """Import transformers' module of DeepSeek V4."""
    return pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4", reason="needs transformers")


@pytest.mark.parametrize(("n", "iters", "eps"), [(4, 20, 1e-6), (2, 3, 1e-4), (8, 1, 1e-6)])
def test_equal_to_transformers(deepseek: Any, n: int, iters: int, eps: float) -> None:
    import transformers

    config = transformers.DeepseekV4Config(
        hidden_size=24, hc_mult=n, hc_sinkhorn_iters=iters, hc_eps=eps, rms_norm_eps=eps, num_hidden_layers=1
    )
    theirs: Any = randomised(deepseek.DeepseekV4HyperConnection(config))
    ours = HyperConnection(24, n, iters, eps)
    with torch.no_grad():
        for mine, its in zip(ours.parameters(), (theirs.fn, theirs.scale, theirs.base), strict=True):
            mine.copy_(its)
    x, out = streams(2, 5, n, 24), streams(2, 5, 24, seed=3)
    write, mix, collapsed = theirs(x)
    y, our_write, our_mix = ours(x)
    for mine, its in ((y, collapsed), (our_write, write), (our_mix, mix)):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    updated = write.unsqueeze(-1) * out.unsqueeze(-2) + torch.matmul(mix.transpose(-1, -2), x)
    torch.testing.assert_close(ours.update(x, out, our_write, our_mix), updated, rtol=1e-5, atol=1e-5)
    wrong_way_round = write.unsqueeze(-1) * out.unsqueeze(-2) + mix @ x
    assert (updated - wrong_way_round).abs().max() > 0.01

    their_head: Any = randomised(deepseek.DeepseekV4HyperHead(config))
    head = HyperHead(24, n, eps)
    with torch.no_grad():
        for mine, its in zip(
            head.parameters(), (their_head.hc_fn, their_head.hc_scale, their_head.hc_base), strict=True
        ):
            mine.copy_(its)
    torch.testing.assert_close(head(x), their_head(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_right() -> None:
    module = randomised(HyperConnection(3, 2, 4)).double()
    x, out = streams(2, 2, 3).double().requires_grad_(), streams(2, 3, seed=2).double().requires_grad_()

    def run(x: torch.Tensor, out: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, write, mix = module(x)
        return y, module.update(x, out, write, mix)

    assert torch.autograd.gradcheck(run, (x, out, *module.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_the_module_compiles_to_one_graph() -> None:
    module = randomised(HyperConnection(16, 4, 5))
    x = streams(2, 3, 4, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for mine, its in zip(compiled(x), module(x), strict=True):
        torch.testing.assert_close(mine, its)
    sum(part.sum() for part in compiled(x)).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_identical_streams_stay_identical_and_any_leading_dims_do() -> None:
    module = randomised(HyperConnection(16))
    x = streams(7, 1, 16).expand(7, 4, 16)
    _, _, mix = module(x)
    torch.testing.assert_close(module.update(x, torch.zeros(7, 16), torch.ones(7, 4), mix), x, rtol=0, atol=1e-5)
    assert module(x[0])[0].shape == (16,)


def test_low_precision_streams_keep_their_dtype() -> None:
    module, head = HyperConnection(16), HyperHead(16)
    x = streams(2, 3, 4, 16).bfloat16()
    y, write, mix = module(x)
    assert {t.dtype for t in (y, write, mix, module.update(x, y, write, mix), head(x))} == {torch.bfloat16}


@pytest.mark.parametrize("iters", [1, 2, 20])
def test_the_jacobian_is_that_of_autograd(iters: int) -> None:
    logits = streams(3, 4, 4).double()
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda z: sinkhorn(z, iters), z).reshape(16, 16) for z in logits]
    )
    torch.testing.assert_close(sinkhorn_jacobian(logits, iters), expected)


def test_columns_sum_to_one_and_rows_only_in_the_limit() -> None:
    mix = sinkhorn(3 * streams(50, 4, 4).double())
    assert (mix.sum(-2) - 1).abs().max() < 1.2e-6
    assert 1e-4 < (mix.sum(-1) - 1).abs().max() < 0.3


@pytest.mark.parametrize("n", [2, 4, 7])
def test_the_projector_removes_what_sinkhorn_cannot_see(n: int) -> None:
    projector, basis = (make(n, dtype=torch.float64) for make in (gauge_projector, gauge_basis))
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(basis @ basis.mT, projector)
    torch.testing.assert_close(basis.mT @ basis, torch.eye((n - 1) ** 2, dtype=torch.float64))
    rows = streams(n, 1).double().expand(n, n)
    assert (projector @ (rows + streams(1, n, seed=2)).flatten()).abs().max() < 1e-6
    logits = streams(n, n).double()
    torch.testing.assert_close(sinkhorn(logits + rows, 300), sinkhorn(logits, 300), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sinkhorn(torch.zeros(4, 3)), "sinkhorn: logits: expected"),
        (lambda: sinkhorn(torch.zeros(4, 4), 0), "iters=0"),
        (lambda: HyperConnection(0), "dim=0"),
    ],
)
def test_bad_input_is_refused(call: Callable[..., object], words: str) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=words):
        call()
