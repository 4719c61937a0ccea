"""`verify_growth` passes a right growth; each planted fault fails its own check first, at its place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import models_growing as models
import pytest
import torch
from torch import nn
from typed import given

import abcfx
import abcfx.growing.runs
import abcfx.pairing.pair
from abcfx.errors import CheckFailedError
from abcfx.growing.output_gap import difference
from abcfx.pairing.factors.index_maps import IndexMap
from abcfx.support.verdict import Verdict


def loss(output: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    targets = models.tokens(*batch.shape, seed=9)
    return nn.functional.cross_entropy(output.flatten(0, 1), targets.flatten())


def gpt(
    seed: int = 0, noise: float = 0.3, layers: int = 2
) -> tuple[models.Gpt, models.Gpt, tuple[torch.optim.Optimizer, torch.optim.Optimizer]]:
    """Train a small GPT for a few steps and grow it; return both and their optimizers."""
    torch.manual_seed(seed)
    small = models.drawn(models.Gpt(32, 4, 2), seed)
    optimizer = torch.optim.AdamW(small.parameters(), 1e-2, weight_decay=0.1)
    for i in range(3):
        optimizer.zero_grad()
        loss(small(models.tokens(seed=i)), models.tokens(seed=i)).backward()
        optimizer.step()
    bigger = models.Gpt(64, 8, 4, 48, layers).double()
    grown = abcfx.grow(small, bigger, models.tokens(), optimizer=optimizer, noise=noise, seed=seed)
    second = torch.optim.AdamW(grown.param_groups)
    second.load_state_dict(given(grown.optimizer_state))
    return small, bigger, (optimizer, second)


def moe(seed: int = 0) -> tuple[models.Moe, models.Moe, None]:
    torch.manual_seed(seed)
    small, large = models.drawn(models.Moe(), seed), models.Moe(32, 48).double()
    abcfx.grow(small, large, models.tokens(), noise=0.3)
    return small, large, None


@pytest.mark.parametrize("seed", range(1))
def test_a_right_growth_passes_all_checks(seed: int) -> None:
    small, large, optimizers = gpt(seed)
    checked = abcfx.verify_growth(small, large, models.tokens(3, 6, seed=seed), loss=loss, optimizers=optimizers)
    assert [each.verdict.value for each in checked] == ["PASS", "PASS", "SKIP", "PASS", "PASS", "PASS", "PASS"]


def test_a_right_growth_in_half_precision_passes_all_checks() -> None:
    small, large = models.drawn(models.Gpt(32, 4, 2)).bfloat16(), models.Gpt(64, 8, 4, inner=48).bfloat16()
    abcfx.grow(small, large, models.tokens(), noise=0.3)
    checked = abcfx.verify_growth(small, large, models.tokens(3, 6), loss=loss, raises=False)
    assert checked, checked.first_failure


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_right_growth_passes_for_twenty_seeds(seed: int) -> None:
    small, large, optimizers = gpt(seed, layers=3)
    assert abcfx.verify_growth(small, large, models.tokens(3, 6, seed=seed), loss=loss, optimizers=optimizers)
    sparse, larger, _ = moe(seed)
    assert abcfx.verify_growth(sparse, larger, models.tokens(3, 6, seed=seed), loss=loss)


def undivided_router(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("experts.router.weight").mul_(2)


def swapped_experts(small: nn.Module, large: nn.Module) -> None:
    for weight in (large.get_parameter("experts.up"), large.get_parameter("experts.down")):
        weight.copy_(weight[[1, 0, 2, 3]])


def halved_rotary_table(small: nn.Module, large: nn.Module) -> None:
    large.get_buffer("blocks.1.table").mul_(0.5)


def other_theta(small: nn.Module, large: nn.Module) -> None:
    angles = 1000.0 ** (-torch.arange(4.0) / 4)
    for i in range(2):
        large.get_buffer(f"blocks.{i}.table").copy_(torch.arange(64.0)[:, None] * angles)


def norm_eps(small: nn.Module, large: nn.Module) -> None:
    norm = large.get_submodule("blocks.0.norm2")
    assert isinstance(norm, nn.RMSNorm)
    norm.eps = 1e-3


def naive_tiling_of_fused_rows(small: nn.Module, large: nn.Module) -> None:
    """Tile all rows as one block, as if q, k and v were not fused."""
    weight = small.get_parameter("blocks.1.qkv.weight")
    large.get_parameter("blocks.1.qkv.weight").copy_(weight.repeat(2, 2) / 2)


def interleaved_key_value_heads(small: nn.Module, large: nn.Module) -> None:
    rows = large.get_parameter("blocks.0.qkv.weight")
    k, v = slice(64, 96), slice(96, 128)
    for part in (k, v):
        own = small.get_parameter("blocks.0.qkv.weight")[32 + 16 * (part is v) :][:16].view(2, 8, 32)
        rows[part] = own.repeat_interleave(2, 0).flatten(0, 1).repeat(1, 2) / 2


def halved_embedding(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("tok.weight").mul_(0.5)


def undivided_down_projection(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("blocks.0.down.weight").mul_(2)


def undivided_head(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("head.weight").mul_(2)


def plain_noise(small: nn.Module, large: nn.Module) -> None:
    weight = large.get_parameter("blocks.1.up.weight")
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1 * weight.std())


def bias_forgotten(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("blocks.1.proj.bias").zero_()


def infinite_weight(small: nn.Module, large: nn.Module) -> None:
    large.get_parameter("blocks.0.gate.weight")[0, 0] = float("inf")


FAULTS = [
    (moe, undivided_router, "C2", "experts"),
    (moe, swapped_experts, "C4", "experts"),
    (gpt, halved_rotary_table, "C1", "blocks.1.table"),
    (gpt, other_theta, "C1", "blocks.0.table"),
    (gpt, norm_eps, "C1", "blocks.0.norm2"),
    (gpt, naive_tiling_of_fused_rows, "C4", "blocks.1.qkv"),
    (gpt, interleaved_key_value_heads, "C4", "blocks.0.qkv"),
    (gpt, halved_embedding, "C4", "tok"),
    (gpt, undivided_down_projection, "C4", "blocks.0.down"),
    (gpt, undivided_head, "C4", "head"),
    (gpt, plain_noise, "C3", "blocks.1.up"),
    (gpt, bias_forgotten, "C4", "blocks.1.proj"),
    (gpt, infinite_weight, "C0", "blocks.0.gate"),
]


QUICK = (undivided_router, halved_rotary_table, naive_tiling_of_fused_rows, plain_noise)


@pytest.mark.parametrize(
    ("make", "fault", "check", "place"),
    [pytest.param(*each, id=each[1].__name__, marks=[] if each[1] in QUICK else pytest.mark.slow) for each in FAULTS],
)
def test_a_planted_fault_fails_its_check_first_and_is_named(
    make: Callable[[], tuple[nn.Module, nn.Module, object]],
    fault: Callable[[nn.Module, nn.Module], None],
    check: str,
    place: str,
) -> None:
    small, large, _ = make()
    with torch.no_grad():
        fault(small, large)
    found = abcfx.verify_growth(small, large, models.tokens(3, 6), loss=loss, raises=False).first_failure
    assert found is not None
    assert found.check.startswith(check), str(found)
    assert found.path.startswith(place), str(found)
    assert found.reason
    assert found.fix


@pytest.mark.parametrize("noise", (0.0, 0.1))
def test_copies_behind_a_relu_are_told_apart_by_noise(noise: float) -> None:
    """Adam's first updates are signs, which two copies behind a ReLU mostly share: sizes must count as well."""
    for seed in range(6):
        torch.manual_seed(seed)
        small, large = (nn.Sequential(nn.Linear(4, w), nn.ReLU(), nn.Linear(w, 2)) for w in (4, 8))
        x, targets = torch.randn(5, 4), torch.randint(0, 2, (5,))
        abcfx.grow(small, large, x, noise=noise)
        checked = abcfx.verify_growth(small, large, (x, targets), checks=("C3",), raises=False)
        assert checked.verdict is (Verdict.PASS if noise else Verdict.FAIL), (seed, checked.rows)


def test_without_noise_copies_stay_equal() -> None:
    small, large, _ = gpt(noise=0.0)
    found = abcfx.verify_growth(small, large, models.tokens(3, 6), loss=loss, raises=False).first_failure
    assert found is not None and found.value is not None
    assert found.check.startswith("C3")
    assert found.value < 1e-12
    assert "noise" in found.fix


@pytest.mark.parametrize("what", ["moments", "rates"])
def test_an_optimizer_that_was_not_carried_along(what: str) -> None:
    small, large, (first, second) = gpt()
    for group in second.param_groups if what == "rates" else ():
        group["lr"] = 1e-2
    if what == "moments":
        for parameter, state in second.state.items():
            if parameter.ndim == 2:
                state["exp_avg_sq"] *= 4
    found = abcfx.verify_growth(
        small, large, models.tokens(3, 6), loss=loss, optimizers=(first, second), raises=False
    ).first_failure
    assert found is not None and found.check.startswith("C5")


def test_new_blocks_that_add_something_are_a_warning() -> None:
    small, deep = models.drawn(models.Gpt(32, 4, 2)), models.Gpt(32, 4, 2, layers=3).double()
    abcfx.grow(small, deep, models.tokens(), zero_output=False)
    checked = abcfx.verify_growth(small, deep, models.tokens(3, 6), loss=loss, raises=False)
    assert checked["C4"].verdict is Verdict.WEAK
    assert not checked
    assert checked["C4"].path == "blocks.2"


def test_a_failure_raises_with_its_place_and_what_to_write() -> None:
    small, large, _ = gpt()
    with torch.no_grad():
        undivided_down_projection(small, large)
    with pytest.raises(CheckFailedError, match=r"(?s)FAIL C4 layers at blocks.0.down.weight.*off, x1.8.*To fix"):
        abcfx.verify_growth(small, large, models.tokens(), loss=loss)


def test_two_architectures_fail_at_the_first_difference() -> None:
    small, _, _ = moe()
    found = abcfx.verify_growth(small, models.Gpt(32, 4).double(), models.tokens(), loss=loss, raises=False)
    assert found["C1"].verdict is Verdict.FAIL
    assert found["C4"].verdict is Verdict.SKIP


def test_a_model_that_other_code_has_grown_passes() -> None:
    """The model is tiled and divided by hand, with noise."""
    small = models.drawn(models.Mlp(8))
    large = models.Mlp(16).double()
    noise = torch.randn(16, 8, dtype=torch.float64) * 0.1
    with torch.no_grad():
        large.first.weight.copy_(small.first.weight.repeat(2, 1))
        large.first.bias.copy_(small.first.bias.repeat(2))
        large.hidden.weight.copy_(small.hidden.weight.repeat(2, 2) / 2 + torch.cat([noise, -noise], 1))
        large.hidden.bias.copy_(small.hidden.bias.repeat(2))
        large.last.weight.copy_(small.last.weight.repeat(1, 2) / 2 + torch.cat([noise[:4], -noise[:4]], 1))
        large.last.bias.copy_(small.last.bias)
    rows = torch.randn(5, 6, dtype=torch.float64)
    checked = abcfx.verify_growth(small, large, rows, loss=lambda y, _: (y - 1).pow(2).mean())
    assert checked
    assert "verdict: PASS" in str(checked)


def test_the_lowest_number_of_a_mask_does_not_overflow() -> None:
    masked = torch.tensor([[1.0, torch.finfo(torch.float32).min]])
    dims = [IndexMap.unchanged(1), IndexMap.unchanged(2)]
    assert difference(masked, masked + torch.tensor([[0.5, 0.0]]), dims) < 1e-30
    assert difference(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]), dims) == pytest.approx(0.5 / 12.5**0.5)


def test_a_difference_that_is_no_number_counts_as_infinite() -> None:
    one, dims = torch.ones(2, 3), [IndexMap.unchanged(2), IndexMap.unchanged(3)]
    broken = one.clone()
    broken[1, 2] = float("nan")
    assert difference(one, broken, dims) == float("inf")
    assert difference(torch.full((2, 3), float("nan")), one, dims) == float("inf")


class Powered(nn.Module):
    """A model with a learned exponent: the factor of its result cannot be known beforehand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 4)
        self.exponent = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).abs() ** self.exponent)


def test_a_learned_exponent_is_followed() -> None:
    torch.manual_seed(0)
    small, large = models.drawn(Powered(8)), Powered(16).double()
    rows = torch.randn(5, 6, dtype=torch.float64)
    abcfx.grow(small, large, rows, noise=0.3)
    assert abcfx.verify_growth(small, large, rows, loss=lambda y, _: (y - 1).pow(2).mean())


class SumsAll(nn.Module):
    """Returns its logits, and the sum of all entries of a tensor, as auxiliary losses have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.last(torch.tanh(self.first(x)))
        return logits, logits.softmax(-1).square().sum()


def test_a_sum_over_all_dims_is_followed() -> None:
    small, x = SumsAll(8), torch.randn(4, 8)
    batch = (x, torch.tensor([0, 1, 2, 3]))
    checked = abcfx.verify_growth(small, abcfx.grow(small, SumsAll(16), x), batch, raises=False)
    assert checked, str(checked)


def test_models_are_left_as_they_were() -> None:
    small, large, optimizers = gpt()
    before = copy.deepcopy((small.state_dict(), large.state_dict()))
    large.train(), small.eval()
    abcfx.verify_growth(small, large, models.tokens(), loss=loss, optimizers=optimizers)
    assert large.training
    assert not small.training
    for model, state in zip((small, large), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in large.parameters())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Count how often each model, by id, was captured and had its aten calls traced since the test began."""
    counts: Counter[tuple[str, int]] = Counter()

    def counted(what: str, module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def call(model: nn.Module, *args: object, **kwargs: object) -> object:
            counts[what, id(model)] += 1
            return original(model, *args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted("capture", abcfx.pairing.pair, "capture")
    counted("trace", abcfx.pairing.factors.pairs, "trace")
    counted("trace", abcfx.growing.runs, "trace")
    return counts


def test_each_model_is_captured_once_and_traced_once(runs: Counter[tuple[str, int]]) -> None:
    small, large = models.drawn(models.Gpt(16, 2)), models.Gpt(32, 4, layers=4).double()
    grown = abcfx.grow(small, large, models.tokens(), noise=0.3)
    once = {(what, id(model)): 1 for what in ("capture", "trace") for model in (small, large)}
    assert runs == once
    runs.clear()
    abcfx.verify_growth(small, large, models.tokens(3, 6), loss=loss)
    assert runs == once
    runs.clear()
    abcfx.verify_growth(small, grown, models.tokens(3, 6), loss=loss)  # on the captures that grow made
    assert runs == {("trace", id(model)): 1 for model in (small, large)}


def test_an_error_of_the_large_model_on_other_inputs_is_a_failure() -> None:
    class Fixed(models.Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.first.out_features == 16 and len(x) != 5:
                raise TypeError("five rows, please")
            return super().forward(x)

    torch.manual_seed(0)
    small, large = models.drawn(Fixed(8)), Fixed(16).double()
    rows = torch.randn(5, 6, dtype=torch.float64)
    abcfx.grow(small, large, rows)
    row = abcfx.verify_growth(small, large, rows, loss=lambda y, _: y.mean(), checks=("C6",), raises=False)["C6"]
    assert row.verdict is Verdict.FAIL
    assert "the large model raises TypeError: five rows, please" in row.reason
