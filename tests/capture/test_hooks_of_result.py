"""Hooks on submodules of a result: they run as on the user's model; those that no graph calls refuse them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import abcfx
from abcfx.errors import InvalidInputError


class Blocks(nn.Module):
    """A stem, two blocks with skip connections, and a head."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, d), nn.Linear(d, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


X = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))


def plan(**options: object) -> abcfx.Transformed:
    torch.manual_seed(0)
    return abcfx.transform(Blocks(32), X, base=Blocks(16), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["symbolic", "export", "record_values"])
@pytest.mark.parametrize("apply", ["insert", "absorb", "off"])
def test_a_hook_runs(method: str, apply: str) -> None:
    module = plan(apply=apply, capture=method).module
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList):
            calls: list[str] = []
            handle = part.register_forward_hook(lambda *_, calls=calls: calls.append("called"))
            module(X)
            assert calls, path
            handle.remove()


class Inlined(Blocks):
    """A model whose second block looks at a value that it is not called with, so that no graph can call it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        hook = self.blocks[1].register_forward_pre_hook(lambda _, args: (args[0] + x,))
        x = self.head(x + self.blocks[1](x * 2))
        hook.remove()
        return x


def inlined(**options: object) -> abcfx.Transformed:
    torch.manual_seed(0)
    return abcfx.transform(Inlined(32), X, base=Inlined(16), **options)  # type: ignore[arg-type]


def test_refusing_survives_copies_and_ends_with_the_graph() -> None:
    result = inlined()
    for module in (copy.deepcopy(result.module), pickle.loads(pickle.dumps(result.module))):
        part = module.get_submodule("blocks.1")
        with pytest.raises(InvalidInputError, match=r"blocks\.1: a hook(?s:.*)inplace"):
            part.register_forward_hook(lambda *_: None)
        with pytest.raises(InvalidInputError, match="hook"):
            part.register_forward_pre_hook(lambda *_: None)
        with pytest.raises(InvalidInputError, match="hook"):
            part.register_full_backward_hook(lambda *_: None)
    calls = []
    folded = result.fold()
    folded.get_submodule("blocks.1").register_forward_hook(lambda *_: calls.append("called"))
    folded(X)
    assert calls == ["called"]
    own = inlined(apply="inplace").module
    own.get_submodule("blocks.1").register_forward_hook(lambda *_: calls.append("called"))
    own(X)
    assert len(calls) == 2


@pytest.mark.parametrize("apply", ["insert", "off"])
def test_a_hook_registered_before_goes_on_to_run(apply: str) -> None:
    models = [Blocks(16), Blocks(16)]
    for model in models:
        model.get_submodule("blocks.0").register_forward_hook(lambda _m, _i, out: out * 2)
    result = abcfx.transform(models[0], X, base=models[1], apply=apply)  # type: ignore[arg-type]
    assert torch.equal(result.module(X), models[0](X)) and not any("hook" in note for note in result.notes)
    hooked, models[0].get_submodule("blocks.0")._forward_hooks = result.module(X), {}
    assert not torch.allclose(hooked, models[0](X))
