"""`fold` returns a model with plain weights that computes what was trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models import Attention, AttentionModule, TiedBlock
from torch import nn
from typed import Options, given, scales_in
from typing_extensions import Unpack

import abcfx

IDS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


class Interleaved(Attention):
    """Attention with queries, keys and values of each head side by side, as in GPT-NeoX."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        b, t, n = x.shape
        q, k, v = given(self.qkv)(self.ln(x)).view(b, t, self.heads, -1).transpose(1, 2).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.o(out.transpose(1, 2).reshape(b, t, n)))


MODELS: dict[str, tuple[Callable[[int], nn.Module], torch.Tensor]] = {
    "tied": (TiedBlock, IDS),
    "separate": (lambda n: Attention(n, 4, "sdpa"), IDS),
    "fused": (lambda n: Attention(n, 4, "fused"), IDS),
    "interleaved": (lambda n: Interleaved(n, 4, "fused"), IDS),
    "module": (lambda n: AttentionModule(n), torch.randn(3, 5, 6, dtype=torch.float64)),
}


def prepared(name: str, **options: Unpack[Options]) -> tuple[nn.Module, abcfx.Transformed, torch.Tensor]:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make(64).double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    defaults: Options = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.1}
    return model, abcfx.transform(model, inputs, base=make(16).double(), **(defaults | options)), inputs


def train(result: abcfx.Transformed, inputs: torch.Tensor, steps: int = 5) -> list[torch.Tensor]:
    optimizer, outputs = torch.optim.AdamW(result.param_groups), []
    for _ in range(steps):
        out = result.module(inputs)
        outputs.append(out.detach())
        optimizer.zero_grad()
        out.square().sub(1).abs().mean().backward()
        optimizer.step()
    return outputs


@pytest.mark.parametrize("name", MODELS)
def test_folded_weights_compute_what_was_trained(name: str) -> None:
    model, result, inputs = prepared(name)
    assert scales_in(result.module)
    train(result, inputs)
    folded, expected = result.fold(), result.module(inputs)
    assert type(folded) is type(model) and list(folded.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(folded(inputs), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.fold()(inputs), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.module(inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_model_object_trains_as_the_graph_with_scale_nodes(name: str) -> None:
    _, inserted, inputs = prepared(name)
    _, own, _ = prepared(name, apply="inplace")
    for left, right in zip(train(inserted, inputs), train(own, inputs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    hooked = name in ("fused", "interleaved", "module")
    expected = own.module(inputs)
    if hooked:
        assert any("hooks" in note for note in own.notes)
        with pytest.raises(abcfx.errors.InvalidInputError, match=r"result\.fold\(\)"):
            own.module.state_dict()
    folded = own.fold()
    assert folded is own.module
    own.module.state_dict()
    torch.testing.assert_close(own.module(inputs), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.fold()(inputs), expected, rtol=1e-12, atol=1e-12)


def test_tied_head_that_nothing_can_scale() -> None:
    torch.manual_seed(0)
    model = TiedBlock(64, affine=False).double()
    before = copy.deepcopy(model.state_dict())
    inserted = abcfx.transform(model, IDS, base=TiedBlock(16, affine=False).double())
    with pytest.raises(abcfx.errors.InvalidInputError, match="multiplier of head cannot be put into weights"):
        inserted.fold()
    with pytest.raises(abcfx.errors.InvalidInputError, match="multiplier of head cannot be absorbed"):
        abcfx.transform(model, IDS, base=TiedBlock(16, affine=False).double(), apply="inplace")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_are_not_stacked() -> None:
    model, _, inputs = prepared("fused", apply="inplace")
    expected = model(inputs)
    with pytest.raises(abcfx.errors.InvalidInputError, match="transformed before"):
        abcfx.transform(model, inputs, base=MODELS["fused"][0](16).double(), apply="inplace")
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=0)


def test_queries_of_separate_projections_are_folded() -> None:
    class Cross(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 2)
            self.attention = nn.MultiheadAttention(width, 2, kdim=5, vdim=3, batch_first=True)

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(self.stem(q), k, v, need_weights=False)[0])

    inputs = tuple(torch.randn(2, 4, n, dtype=torch.float64) for n in (6, 5, 3))
    result = abcfx.transform(Cross(64).double(), inputs, base=Cross(16).double())
    torch.testing.assert_close(result.fold()(*inputs), result.module(*inputs), rtol=1e-12, atol=1e-12)
