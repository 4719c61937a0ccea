"""How a tensor was drawn is told from its entries: what is random in it, and what is structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn as nn

from abcfx.plan.draws import Draw, Law
from abcfx.plan.init import Init

Make = Callable[[int], torch.Tensor]
SIZE = 64


def sines(n: int) -> torch.Tensor:
    angles = torch.arange(20.0)[:, None] * 10000.0 ** (-2 * torch.arange(n // 2) / n)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def forgetful(n: int, others: Callable[[int], torch.Tensor], add: bool = False) -> torch.Tensor:
    bias = others(4 * n)
    bias[n : 2 * n] = bias[n : 2 * n] + 1.0 if add else 1.0
    return bias


def uniform(n: int) -> torch.Tensor:
    return torch.empty(n).uniform_(-0.1, 0.1)


KEPT: Mapping[str, Make] = {
    "log-spaced": lambda n: torch.log(torch.arange(1, n + 1).float()),
    "log-spaced in rows": lambda n: torch.log(torch.arange(1, 17).float()).repeat(n, 1),
    "linspace": lambda n: torch.linspace(-1, 1, n),
    "sines": sines,
    "identity": lambda n: nn.init.eye_(torch.empty(n, n)),
    "identity of other sizes": lambda n: nn.init.eye_(torch.empty(n, 8)),
    "dirac": lambda n: nn.init.dirac_(torch.empty(n, n, 3)),
    "signs": lambda n: torch.tensor([1.0, -1.0]).repeat(n // 2),
    "forget gates among zeros": lambda n: forgetful(n, torch.zeros),
    "lower triangle of ones": lambda n: torch.ones(n, n).tril(),
    "two entries": lambda n: torch.tensor([0.3, -2.0]),
    "layer scale": lambda n: torch.full((n,), 1e-5),
    "zeros": lambda n: torch.zeros(n, n),
}


@pytest.mark.parametrize("kind", list(KEPT))
def test_structure_is_never_scaled_and_drawn_the_same_again(kind: str) -> None:
    torch.manual_seed(0)
    tensor = KEPT[kind](SIZE)
    init = Init.scaled(Draw.of(tensor), factor=1.0)
    kept = tensor.clone()
    init.apply_(kept)
    assert torch.equal(kept, tensor) and torch.equal(init.draw(torch.empty_like(tensor)), tensor)
    if Draw.of(tensor).law is not Law.CONSTANT:
        assert Init.scaled(Draw.of(tensor), factor=0.5).factor == 1.0


SCATTERED: Mapping[str, tuple[Make, Make]] = {
    "normal": (lambda n: torch.randn(n, n) * 0.02, torch.zeros),
    "uniform": (uniform, torch.zeros),
    "one mean": (lambda n: torch.randn(n, n) + 0.5, lambda n: torch.full((n, n), 0.5)),
    "a mean of each expert": (
        lambda n: 0.1 * torch.randn(3, n, n) + torch.tensor([0.0, 1.0, -1.0])[:, None, None],
        lambda n: torch.tensor([0.0, 1.0, -1.0])[:, None, None].expand(3, n, n),
    ),
    "around an identity": (lambda n: torch.eye(n) + 0.01 * torch.randn(n, n), torch.eye),
    "steps in log space": (
        lambda n: torch.log(torch.expm1(torch.exp(torch.rand(4 * n) * math.log(100) + math.log(1e-3)))),
        lambda n: torch.full((4 * n,), -4.65),
    ),
    "more in forget gates": (
        lambda n: forgetful(n, uniform, add=True),
        lambda n: forgetful(n, torch.zeros),
    ),
    "forget gates set": (lambda n: forgetful(n, uniform), lambda n: forgetful(n, torch.zeros)),
    "padding": (
        lambda n: torch.cat([torch.zeros(1, n), torch.randn(n, n)]),
        lambda n: torch.zeros(n + 1, n),
    ),
    "mostly zeros": (lambda n: nn.init.sparse_(torch.empty(n, n), 0.9), torch.zeros),
    "half precision": (lambda n: (torch.randn(n, n) * 0.02).bfloat16(), torch.zeros),
    "complex": (lambda n: torch.rand(n, n, dtype=torch.complex64), lambda n: torch.full((n, n), 0.5 + 0.5j)),
}


@pytest.mark.parametrize("kind", list(SCATTERED))
@pytest.mark.parametrize("again", [False, True])
def test_only_what_scatters_is_scaled_or_drawn_again(kind: str, again: bool) -> None:
    torch.manual_seed(0)
    make, centre = SCATTERED[kind]
    tensor = make(SIZE)
    middle = torch.zeros(1) if centre is torch.zeros else centre(SIZE)
    init = Init.scaled(Draw.of(tensor), factor=0.5)
    planned = tensor.clone()
    if again:
        init.draw(planned)
        assert not torch.equal(planned, tensor)
    else:
        init.apply_(planned)
    before, now = (each.to(torch.complex64) - middle for each in (tensor, planned))
    assert float(now.abs().square().mean().sqrt() / before.abs().square().mean().sqrt()) == pytest.approx(0.5, abs=0.06)
    assert abs(complex(now.mean())) < 0.35 * float(before.abs().mean())
    stays = (tensor == 0) | (tensor == 1)
    if again and kind == "mostly zeros":
        assert torch.equal(planned == 0, stays)
    assert torch.equal(planned[stays], tensor[stays])


ROTATIONS: Mapping[str, Make] = {
    "one": lambda n: nn.init.orthogonal_(torch.empty(n, n)),
    "tall": lambda n: nn.init.orthogonal_(torch.empty(2 * n, n)),
    "a kernel": lambda n: nn.init.orthogonal_(torch.empty(n, n, 3)).flatten(1),
    "one for each gate": lambda n: torch.cat([nn.init.orthogonal_(torch.empty(n, n)) for _ in range(4)]),
    "one for each expert": lambda n: torch.stack([nn.init.orthogonal_(torch.empty(n, n)) for _ in range(3)]),
}


@pytest.mark.parametrize("kind", list(ROTATIONS))
def test_rotations_are_drawn_again_as_rotations(kind: str) -> None:
    torch.manual_seed(0)
    tensor = ROTATIONS[kind](SIZE)
    again = Init.scaled(Draw.of(tensor), factor=0.5).draw(torch.empty_like(tensor))
    assert not torch.equal(again, tensor)
    first = again[0] if again.ndim == 3 else again[:SIZE] if kind == "one for each gate" else again
    gram = first @ first.T if len(first) <= first.shape[1] else first.T @ first
    torch.testing.assert_close(gram, 0.25 * torch.eye(len(gram)), atol=1e-4, rtol=1e-4)


def test_random_entries_are_not_taken_for_structure() -> None:
    torch.manual_seed(0)
    shapes = ((16, 16), (16, 64), (64, 16, 3), (256,), (40, 8), (3, 64))
    makers = (torch.randn, torch.rand, lambda *shape: nn.init.trunc_normal_(torch.empty(*shape)))
    laws = [Draw.of(make(*shape)).law for make in makers for shape in shapes for _ in range(50)]
    assert laws.count(Law.RANDOM) == len(laws)
