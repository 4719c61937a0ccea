"""`grow` keeps the function and the training trajectory up to rounding, or refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import models_growing as models
import pytest
import torch
from models import Lion
from torch import nn
from typed import given, number

import abcfx
from abcfx.errors import GrowthError, InfeasibleError, InvalidInputError, PairingError
from abcfx.growing.fill import width
from abcfx.growing.fill.depth import BlockOrder
from abcfx.growing.fill.width import Widening, zero_sum_noise
from abcfx.pairing.factors.index_maps import IndexMap

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

GROWTHS: dict[str, Callable[[], tuple[nn.Module, nn.Module, torch.Tensor]]] = {
    "mlp x2": lambda: (models.Mlp(8), models.Mlp(16), ROWS),
    "mlp, hidden only x3": lambda: (models.Mlp(8, 8), models.Mlp(8, 24), ROWS),
    "mlp x1.5": lambda: (models.Mlp(8), models.Mlp(12), ROWS),
    "gpt": lambda: (models.Gpt(16, 2), models.Gpt(32, 4, inner=48), models.tokens()),
    "gpt x3": lambda: (models.Gpt(16, 2), models.Gpt(48, 6, inner=72), models.tokens()),
    "gpt tied": lambda: (models.Gpt(16, 2, tied=True), models.Gpt(32, 4, tied=True), models.tokens()),
    "gpt, layer norm": lambda: (models.Gpt(norm=nn.LayerNorm), models.Gpt(32, 4, norm=nn.LayerNorm), models.tokens()),
    "gpt, head_dim": lambda: (models.Gpt(16, 2, rotary=False), models.Gpt(32, 2, rotary=False), models.tokens()),
    "gpt, key-value heads grow": lambda: (models.Gpt(32, 4, 2), models.Gpt(64, 8, 4), models.tokens()),
    "gpt, key-value heads stay": lambda: (models.Gpt(32, 4, 2), models.Gpt(64, 8, 2), models.tokens()),
    "gpt, inner only": lambda: (models.Gpt(16, 2, inner=24), models.Gpt(16, 2, inner=72), models.tokens()),
    "gpt, deeper": lambda: (models.Gpt(16, 2), models.Gpt(16, 2, layers=5), models.tokens()),
    "gpt, wider and deeper": lambda: (models.Gpt(16, 2), models.Gpt(32, 4, layers=4), models.tokens()),
    "experts, wider": lambda: (models.Moe(), models.Moe(32, 48), models.tokens()),
    "experts and top_k": lambda: (models.Moe(), models.Moe(16, 24, 8, 4), models.tokens()),
    "listed experts, deeper": lambda: (models.Stream(models.ListedExperts),
                                       models.Stream(models.ListedExperts, 32, layers=4), models.tokens()),
    "resnet, batch norm": lambda: (models.Residual(8), models.Residual(24), IMAGES),
    "resnet, group norm": lambda: (models.Residual(8, lambda c: nn.GroupNorm(2, c), 2),
                           models.Residual(16, lambda c: nn.GroupNorm(2, c), 2), IMAGES),
}  # fmt: skip


def noised(step: Mapping[str, object]) -> list[str]:
    """Return the names of the parameters to which a step added noise."""
    names = step["noised"]
    assert isinstance(names, list)
    return names


def pair_of(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    small, large, inputs = GROWTHS[name]()
    return models.drawn(small), large.double(), inputs


@pytest.mark.parametrize("noise", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
@pytest.mark.parametrize("name", GROWTHS)
def test_the_function_is_kept(name: str, noise: float) -> None:
    small, large, inputs = pair_of(name)
    grown = abcfx.grow(small, large, inputs, noise=noise, seed=3)
    assert grown.module is large
    with torch.no_grad():
        small.eval(), large.eval()
        expected, got = small(inputs), large(inputs)
    assert (got - expected).abs().max() <= 1e-12 * expected.pow(2).mean().sqrt()
    assert all(step.kept for step in grown.steps)


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, betas=(0.8, 0.9)),
    lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True),
    lambda p: Lion([{"params": list(p), "lr": 1e-4, "weight_decay": 0.1}]),
], ids=["adamw", "sgd", "amsgrad", "rmsprop", "lion"])  # fmt: skip
@pytest.mark.parametrize(
    "name",
    [
        "gpt tied",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp x2", "gpt", "experts, wider", "gpt, head_dim")),
    ],
)
def test_training_follows_the_same_trajectory(name: str, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    small, large, inputs = pair_of(name)
    batches = [inputs if inputs.is_floating_point() else models.tokens(2, 6, seed=i) for i in range(25)]
    first = optimizer(small.parameters())

    def step(model: nn.Module, taken: torch.optim.Optimizer, batch: torch.Tensor) -> torch.Tensor:
        taken.zero_grad()
        output = model(batch)
        (output.tanh() * torch.linspace(-1, 1, output.shape[-1])).pow(2).sum().backward()
        taken.step()
        return output.detach()

    for batch in batches[:5]:
        step(small, first, batch)
    grown = abcfx.grow(small, large, inputs, optimizer=first, noise=0.0)
    make: Callable[..., torch.optim.Optimizer] = type(first)
    second = make(grown.param_groups)
    second.load_state_dict(given(grown.optimizer_state))
    for batch in batches[5:]:
        expected, got = step(small, first, batch), step(large, second, batch)
        assert (got - expected).abs().max() <= 1e-10 * expected.pow(2).mean().sqrt()


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("sizes", [(16, 16), (8, 32)])
def test_muon_goes_on_as_far_as_its_own_rounding_lets_it(sizes: tuple[int, int], adjust: str) -> None:
    """It computes in bfloat16. Singular values of copied matrices are larger, and its updates have them all at one."""
    small, large = models.drawn(models.Mlp(8)), models.Mlp(*sizes).double()
    matrices = [p for p in small.parameters() if p.ndim == 2]
    first = torch.optim.Muon(matrices, 1e-2, weight_decay=0.1, adjust_lr_fn=adjust)

    def step(model: nn.Module, taken: torch.optim.Optimizer) -> torch.Tensor:
        taken.zero_grad()
        (model(ROWS).tanh() * torch.linspace(-1, 1, 4)).pow(2).sum().backward()
        taken.step()
        return model(ROWS).detach()

    start = step(small, first)
    grown = abcfx.grow(small, large, ROWS, optimizer=first, noise=0.0)
    second = torch.optim.Muon(grown.param_groups, adjust_lr_fn=adjust)
    second.load_state_dict(given(grown.optimizer_state))
    for _ in range(5):
        expected, got = step(small, first), step(large, second)
    assert (got - expected).abs().max() < 0.03 * (expected - start).abs().max()


def test_a_schedule_runs_on() -> None:
    small, large, inputs = pair_of("mlp x2")
    first = torch.optim.AdamW(small.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1 / (1 + step))
    first.step()
    schedule.step()
    grown = abcfx.grow(small, large, inputs, optimizer=first)
    second = torch.optim.AdamW(grown.param_groups)
    torch.optim.lr_scheduler.LambdaLR(second, lambda step: 1 / (1 + step), last_epoch=schedule.last_epoch)
    for group in second.param_groups:
        factor = grown.rates[group["param_names"][0]]
        assert group["lr"] == pytest.approx(1e-2 / 3 * factor)
        assert group["initial_lr"] == pytest.approx(1e-2 * factor)


def test_rates_are_those_of_the_plan() -> None:
    """-log of the factor is the exponent that the LP finds for Adam under full alignment."""
    small, large, inputs = pair_of("gpt")
    spec = abcfx.transform(copy.deepcopy(large), (inputs,), base=copy.deepcopy(small), apply="absorb").spec
    rates = abcfx.grow(small, large, inputs).rates
    for name, row in spec.items():
        a = number(row["a"])
        assert rates[name] == pytest.approx(2.0 ** -row["c"] * 2.0**-a if a else row["lr"] / 1e-3), name


@pytest.mark.parametrize(("small", "large", "match"), [
    (lambda: models.Gpt(norm=nn.LayerNorm), lambda: models.Gpt(24, 3, norm=nn.LayerNorm), "unequal numbers of copies"),
    (lambda: models.Gpt(16, 2), lambda: models.Gpt(32, 2), r"table, constant.*not a tiling"),
    (lambda: models.Gpt(16, 2, rotary=False), lambda: models.Gpt(16, 4, rotary=False), "shrinks, 8 -> 4"),
    (lambda: models.Gpt(16, 2), lambda: models.Gpt(32, 4, eps=1e-3), "a number in the graph is 0.001"),
    (lambda: models.Moe(), lambda: models.Moe(16, 24, 8, 2), "over a dim that grows"),
], ids=["uneven", "rotary", "shrinking", "eps", "experts"])  # fmt: skip
def test_growths_that_cannot_keep_the_function_are_refused_before_anything_is_written(
    small: Callable[[], nn.Module], large: Callable[[], nn.Module], match: str
) -> None:
    written = large()
    before = copy.deepcopy(written.state_dict())
    with pytest.raises(GrowthError, match=match):
        abcfx.grow(small(), written, models.tokens())
    assert all(torch.equal(tensor, before[name]) for name, tensor in written.state_dict().items())


def test_a_tied_head_without_a_gain_before_it_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.tok, self.norm = nn.Embedding(9, width), nn.LayerNorm(width, 1e-5, False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.norm(self.tok(tokens)) @ self.tok.weight.T

    with pytest.raises(InfeasibleError, match="function preserving"):
        abcfx.grow(Bare(8), Bare(16), models.tokens() % 9)


def test_fewer_blocks_and_other_architectures_are_refused() -> None:
    with pytest.raises(GrowthError, match="blocks has 3 blocks in the small model and 2"):
        abcfx.grow(models.Gpt(layers=3), models.Gpt(layers=2), models.tokens())
    with pytest.raises(PairingError):
        abcfx.grow(models.Mlp(8), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), ROWS.float())
    with pytest.raises(InvalidInputError, match="'stack', 'interleave', 'append'"):
        abcfx.grow(models.Mlp(8), models.Mlp(16), ROWS.float(), block_order=cast("BlockOrder", "twice"))


@pytest.mark.parametrize(("order", "sources"), [("stack", "0101"), ("interleave", "0011"), ("append", "0111")])
def test_where_new_blocks_go(order: BlockOrder, sources: str) -> None:
    small, large = models.drawn(models.Gpt(layers=2)), models.Gpt(layers=4).double()
    grown = abcfx.grow(small, large, models.tokens(), block_order=order, noise=0.0)
    for i, source in enumerate(sources):
        made, own = (m.get_parameter(f"blocks.{j}.qkv.weight") for m, j in ((large, i), (small, source)))
        assert torch.equal(made, own)
    assert grown.steps[-1].difference < 1e-12


def test_whole_copies_change_the_function_and_the_report_says_so() -> None:
    small, large = models.drawn(models.Gpt(layers=2)), models.Gpt(layers=4).double()
    grown = abcfx.grow(small, large, models.tokens(), zero_output=False)
    assert not grown.steps[-1].kept
    assert grown.steps[-1].difference > 0.1
    assert "FUNCTION CHANGED" in grown.report


def test_a_larger_vocabulary_keeps_the_old_columns() -> None:
    small, large = models.drawn(models.Gpt(16, 2)), models.Gpt(32, 4, vocabulary=31).double()
    own = large.head.weight.detach().clone()
    abcfx.grow(small, large, models.tokens())
    torch.testing.assert_close(large(models.tokens())[..., : models.VOCABULARY], small(models.tokens()))
    assert torch.equal(large.head.weight[models.VOCABULARY :], own[models.VOCABULARY :])


def test_the_plan_says_how_every_tensor_was_made() -> None:
    small, large, inputs = pair_of("gpt, key-value heads stay")
    plan: Any = abcfx.grow(small, large, inputs, noise=0.0).plan  # JSON
    (widen,) = plan
    for name, entry in widen["tensors"].items():
        tensor: torch.Tensor = dict(small.named_parameters())[entry["source"]]
        for place, dim in enumerate(entry["dims"]):
            tensor = tensor.index_select(place, IndexMap.from_json(dim).indices())
        assert torch.equal(tensor * entry["factor"], dict(large.named_parameters())[name]), name


def test_noise_adds_up_to_zero_over_the_copies_of_an_input() -> None:
    widening = Widening("w", (IndexMap.tiling(4, 8), IndexMap.tiling(3, 9)), 1 / 3, (1,))
    noise = zero_sum_noise((8, 9), widening, 0.3, torch.Generator().manual_seed(0))
    assert noise.view(8, 3, 3).sum(1).abs().max() < 1e-6
    assert noise.pow(2).mean().sqrt() == pytest.approx(0.3, rel=0.3)


class Latents(nn.Module):
    """A model with learned queries and a learned token before its inputs: parameters that are no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.queries = (nn.Parameter(torch.randn(1, n, width)) for n in (1, 3))
        self.patch, self.q, self.kv = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patch(x).unsqueeze(1)], 1)
        k, v = self.kv(torch.tanh(x)).chunk(2, -1)
        q = self.q(torch.tanh(self.queries)).expand(x.shape[0], -1, -1)
        return self.head(((q @ k.mT).tanh() @ v).mean(1))


def test_learned_inputs_get_no_noise() -> None:
    torch.manual_seed(0)
    small, large = models.drawn(Latents(8)), Latents(16).double()
    grown = abcfx.grow(small, large, ROWS, noise=0.5)
    assert not {"token", "queries"} & set(noised(grown.plan[0]))
    torch.testing.assert_close(large(ROWS), small(ROWS), rtol=0, atol=1e-12)


def test_a_tensor_written_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, inputs = pair_of("gpt, key-value heads grow")
    abcfx.grow(small, large, inputs, noise=0.0)
    whole = copy.deepcopy(large.state_dict())
    monkeypatch.setattr(width, "PART_ENTRIES", 50)
    abcfx.grow(small, large, inputs, noise=0.0)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in large.state_dict().items())
    abcfx.grow(small, large, inputs, noise=0.5)
    torch.testing.assert_close(large(inputs), small(inputs), rtol=0, atol=1e-12)


class Peeking(nn.Module):
    """A model that takes one channel to read a length from it, as some encoders do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.head = nn.Embedding(models.VOCABULARY, width), nn.Linear(width, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        length = x[:, :, -1].shape[1]
        return self.head(x) / length


def test_what_no_output_depends_on_is_no_reason_to_refuse() -> None:
    small, large = models.drawn(Peeking(8)), Peeking(16).double()
    abcfx.grow(small, large, models.tokens())
    torch.testing.assert_close(large(models.tokens()), small(models.tokens()), rtol=0, atol=1e-12)


class Recurrent(nn.Module):
    """A cell that is called once for each token, so that its weights are used many times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.cell, self.head = nn.Embedding(23, width), nn.LSTMCell(width, width), nn.Linear(width, 23)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, states = self.tok(tokens), []
        h = c = torch.zeros_like(x[:, 0])
        for position in range(x.shape[1]):
            h, c = self.cell(x[:, position], (h, c))
            states.append(h)
        return self.head(torch.stack(states, 1))


class Masked(nn.Module):
    """torch's encoder, which reads the values of its mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, width // 8, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.tok, self.layers = nn.Embedding(23, width), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 23)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
        return self.head(self.layers(self.tok(tokens), mask=mask))


@pytest.mark.parametrize("kind", [Recurrent, pytest.param(Masked, marks=pytest.mark.slow)])
def test_weights_that_are_used_again_and_masks_that_are_looked_at(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    small, large = models.drawn(kind(16)), kind(32).double()
    (step,) = abcfx.grow(small, large, models.tokens(), noise=0.3).steps
    assert step.difference < 1e-12
    contracted = {n for n, p in large.named_parameters() if p.ndim == 2 and n != "tok.weight"}
    assert set(noised(step.data)) == contracted


def test_unknown_state_of_an_optimizer_is_refused_before_anything_is_written() -> None:
    small, large, inputs = pair_of("mlp x2")
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    weight = small.get_parameter("first.weight")
    optimizer.state[weight]["curvature"] = torch.ones_like(weight)
    before = copy.deepcopy(large.state_dict())
    with pytest.raises(GrowthError, match="SGD keeps 'curvature'"):
        abcfx.grow(small, large, inputs, optimizer=optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in large.state_dict().items())


def test_more_experts_in_a_list_are_no_deeper_model() -> None:
    small = models.Stream(lambda width, inner: models.ListedExperts(width, inner, 4, 2))
    large = models.Stream(lambda width, inner: models.ListedExperts(width, inner, 8, 4))
    with pytest.raises(GrowthError, match=r"(?s)mlps.0.experts has 4 submodules.*expected: blocks one behind another"):
        abcfx.grow(small, large, models.tokens())
