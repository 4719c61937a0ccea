"""A base that leaves out ops that move or repeat entries, since they change nothing there, gives the same exponents."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.errors import PairingError

METHODS: tuple[CaptureMethod, ...] = ("symbolic", "export", "record")
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Grouped(nn.Module):
    """Attention whose keys have fewer heads than its queries; keys are repeated only where that is needed."""

    def __init__(self, heads: int, key_heads: int, always: bool = False, fused: bool = True) -> None:
        super().__init__()
        width = 8 * heads
        self.emb, self.head = nn.Linear(8, width), nn.Linear(width, 3)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, 8 * key_heads) for _ in range(2))
        self.repeats = heads // key_heads
        self.always, self.fused, self.heads = always, fused, heads

    def repeated(self, x: Tensor) -> Tensor:
        if self.repeats == 1 and not self.always:
            return x
        batch, heads, time, size = x.shape
        return (
            x[:, :, None]
            .expand(batch, heads, self.repeats, time, size)
            .reshape(batch, heads * self.repeats, time, size)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = self.repeated(k), self.repeated(v)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 8).softmax(-1) @ v
        return self.head(x + self.o(y.transpose(1, 2).flatten(2)))


def exponents(target: nn.Module, base: nn.Module, method: CaptureMethod) -> dict[str, tuple[object, ...]]:
    spec = abcfx.transform(target, X, base=base, optimizer="adamw", capture=method).spec
    return {name: tuple(row[key] for key in ("role", "growth", "a", "b", "c", "g")) for name, row in spec.items()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("ours", "theirs"), [((8, 2), (2, 2)), ((8, 8), (4, 2)), ((8, 4), (2, 2)), ((8, 1), (1, 1))])
def test_keys_that_are_repeated_in_one_model_only(
    ours: tuple[int, int], theirs: tuple[int, int], method: CaptureMethod, fused: bool
) -> None:
    target = Grouped(*ours, fused=fused)
    skipped = exponents(target, Grouped(*theirs, fused=fused), method)
    assert skipped == exponents(
        Grouped(*ours, always=True, fused=fused), Grouped(*theirs, always=True, fused=fused), method
    )


class Moved(nn.Module):
    """A layer, something that changes no entry in some models, and a product over a dim of what comes out."""

    def __init__(self, width: int, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.move(F.relu(self.first(x))))
        return self.head(x / x.shape[-1] ** 0.5)


def same(x: Tensor) -> Tensor:
    return x


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "clone": lambda x: x.clone(),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "heads and back": lambda x: x.unflatten(-1, (-1, 4)).flatten(-2),
    "squeezed": lambda x: x[:, None].squeeze(1),
    "whole": lambda x: x[:, :],
    "a head of its own": lambda x: x.unsqueeze(1).transpose(1, 2).flatten(2),
    "two": lambda x: x.contiguous().reshape(x.shape[0], x.shape[1], -1),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("method", METHODS)
def test_ops_that_change_nothing_may_be_left_out_in_one_model(name: str, method: CaptureMethod) -> None:
    plain = exponents(Moved(64, same), Moved(16, same), method)
    assert exponents(Moved(64, MOVES[name]), Moved(16, same), method) == plain
    assert exponents(Moved(64, same), Moved(16, MOVES[name]), method) == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.flip(1),
        lambda x: x * 2,
        lambda x: x[:, :-1],
        lambda x: F.dropout(x, 0.1),
    ],
)
def test_ops_that_change_something_are_no_less_refused(change: Callable[[Tensor], Tensor]) -> None:
    for target, base in ((change, same), (same, change)):
        with pytest.raises(PairingError, match="not one architecture"):
            abcfx.transform(Moved(64, target), X, base=Moved(16, base), capture="symbolic")


def test_what_an_op_reads_counts_where_moves_differ() -> None:
    class Crossed(Moved):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            left, right = self.second(self.move(y)), torch.tanh(y)
            return self.head(left.sigmoid() * right if self.move is same else right.sigmoid() * left)

    with pytest.raises(PairingError, match="not one architecture"):
        abcfx.transform(Crossed(64, MOVES["clone"]), X, base=Crossed(16, same), capture="symbolic")


@pytest.mark.parametrize("capture", ["export", "record"])
def test_llama_with_as_many_key_heads_as_heads_in_the_base(capture: CaptureMethod) -> None:
    hf = pytest.importorskip("transformers")

    def llama(heads: int, key_heads: int) -> nn.Module:
        config = hf.LlamaConfig(
            hidden_size=16 * heads, intermediate_size=32 * heads, num_hidden_layers=1, num_attention_heads=heads,
            num_key_value_heads=key_heads, vocab_size=32, max_position_embeddings=16,
        )  # fmt: skip
        model: nn.Module = hf.LlamaForCausalLM(config)
        return model

    ids = torch.arange(16).view(2, 8)
    rows = [
        abcfx.transform(llama(8, keys), ids, base=llama(heads, keys), optimizer="adamw", capture=capture).spec
        for heads, keys in ((2, 2), (4, 2))
    ]
    for name, row in rows[0].items():
        assert all(row[key] == rows[1][name][key] for key in ("role", "growth", "b", "c")), name


def test_gpt2_with_one_head_in_the_base() -> None:
    hf = pytest.importorskip("transformers")

    def gpt2(heads: int) -> nn.Module:
        config = hf.GPT2Config(n_embd=8 * heads, n_layer=1, n_head=heads, vocab_size=32, n_positions=16)
        model: nn.Module = hf.GPT2LMHeadModel(config)
        return model

    ids = torch.arange(16).view(2, 8)
    rows = [abcfx.transform(gpt2(8), ids, base=gpt2(heads), optimizer="adamw").spec for heads in (1, 2)]
    for name, row in rows[0].items():
        assert all(row[key] == rows[1][name][key] for key in ("role", "growth", "b", "c")), name
