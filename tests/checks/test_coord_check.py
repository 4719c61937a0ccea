"""The coordinate check passes a right model; of a wrong one it names the layer that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typed import given

import abcfx
from abcfx.capture import EmittedModule
from abcfx.checks import CoordCheck
from abcfx.checks.batches import few_tokens
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.passes import scale_nodes
from abcfx.plan.spec import Spec
from abcfx.support import trees

BASE = 32
WIDTHS = (BASE, 64, 128)
HIDDEN, READOUT, EMBEDDING = "blocks.1.mlp.up.weight", "head.weight", "tok.weight"
Prepare = Callable[[abcfx.Transformed, int], Any]


def gpt(width: int) -> nn.Module:
    return GPT(GPTConfig(d_model=width))


def wide_heads(width: int) -> nn.Module:
    return GPT(GPTConfig(d_model=width, head_dim=width // 4))


def ids() -> torch.Tensor:
    return torch.randint(0, 128, (8, 64), generator=torch.Generator().manual_seed(0))


def check(make_model: Callable[[int], nn.Module] = gpt, **options: Any) -> CoordCheck:
    defaults: dict[str, Any] = {"widths": WIDTHS, "control": False}
    return abcfx.coord_check(make_model, ids(), **(defaults | options))


def failed(result: CoordCheck) -> list[str]:
    return [row.name for row in result.failed]


def rate_off(name: str, exponent: float) -> Prepare:
    def prepare(result: abcfx.Transformed, width: int) -> torch.optim.Optimizer:
        spec = {
            n: row | {"lr": row["lr"] * (width / BASE) ** (exponent * (n == name))} for n, row in result.spec.items()
        }
        return torch.optim.AdamW(abcfx.param_groups(result.module, Spec(spec)))

    return prepare


def init_off(name: str, exponent: float) -> Prepare:
    def prepare(result: abcfx.Transformed, width: int) -> None:
        with torch.no_grad():
            dict(result.module.named_parameters())[name].mul_((width / BASE) ** exponent)

    return prepare


def factor_off(label: str, power: float) -> Prepare:
    """Raise the scale nodes of one layer to a power: 0 takes them out, 2 applies them twice."""

    def prepare(result: abcfx.Transformed, width: int) -> None:
        module: Any = result.module
        for each in [each for each in module.modules() if isinstance(each, EmittedModule)]:
            for node in [node for graph in each.graphs for node in scale_nodes(graph)]:
                if node.meta["abcfx"].label.startswith(label):
                    node.args = (node.args[0], node.meta["abcfx"].factor ** power)
            each.recompile()

    return prepare


def test_a_right_model_passes_and_the_control_fails() -> None:
    result = check(control=True)
    assert result
    assert result.verdict == "PASS"
    assert result.control == "FAIL"
    assert not result.failed
    assert list(result.nodes)[:3] == [EMBEDDING, "blocks.0.attn.qkv.weight", "blocks.0.attn (attention logits)"]
    assert result.slope(READOUT, "init").mean == pytest.approx(-0.5, abs=0.05)
    assert given(result.slope(HIDDEN, model="standard").mean) > 0.4
    assert check(wide_heads)
    assert check(parametrization="ntk").nodes[EMBEDDING] == "PASS"


@pytest.mark.parametrize("exponent", [0.5, -0.5])
@pytest.mark.parametrize("name", [HIDDEN, READOUT, EMBEDDING])
def test_a_rate_that_is_off_fails_by_name(name: str, exponent: float) -> None:
    result = check(prepare=rate_off(name, exponent), seeds=2)
    assert not result
    assert failed(result)[0] == name
    assert result.slope(name).verdict == "FAIL"
    assert result.slope(name).mean == pytest.approx(exponent, abs=0.15)


@pytest.mark.parametrize("exponent", [0.5, -0.5])
@pytest.mark.parametrize("name", [HIDDEN, READOUT, EMBEDDING])
def test_an_init_that_is_off_fails_by_name(name: str, exponent: float) -> None:
    result = check(prepare=init_off(name, exponent), seeds=2)
    assert not result
    assert failed(result)[0] == name
    assert result.slope(name, "init").verdict == "FAIL"


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_a_multiplier_that_is_off_fails_by_name(power: float) -> None:
    result = check(prepare=factor_off("head", power), seeds=2)
    assert failed(result) == [READOUT]


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_attention_with_another_scale_fails_by_name(power: float) -> None:
    result = check(wide_heads, prepare=factor_off("scaled_dot_product_attention", power), seeds=2)
    wanted = [f"blocks.{i}.attn (attention logits)" for i in (0, 1)]
    assert [name for name in failed(result) if "logits" in name] == wanted
    assert failed(result)[0] == wanted[0]


def test_attention_that_is_told_to_keep_its_scale_fails() -> None:
    assert "blocks.0.attn (attention logits)" in failed(
        check(wide_heads, parametrization=abcfx.Parametrization(attention="keep"))
    )


def test_a_rate_given_by_the_user_is_judged_against_the_one_that_would_be_solved() -> None:
    result = check(overrides=abcfx.Overrides(exponents={HIDDEN: (0.0, 0.5, 1.5)}))
    assert failed(result) == [HIDDEN]


def test_a_layer_behind_a_wrong_one_is_not_blamed() -> None:
    result = check(prepare=init_off(HIDDEN, 0.5))
    behind = result.slope("blocks.1.mlp.down.weight")
    assert behind.verdict == "FAIL"
    assert behind.cause == HIDDEN
    assert "blocks.1.mlp.down.weight" not in failed(result)


class ZeroHead(nn.Module):
    """A model whose first step moves the readout only, with a frozen layer that never moves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mid = nn.Linear(8, width), nn.Linear(width, width)
        self.fixed, self.head = nn.Linear(width, width), nn.Linear(width, 4)
        nn.init.zeros_(self.head.weight)
        self.fixed.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fixed(torch.tanh(self.mid(torch.tanh(self.stem(x)))))))


def test_zeros_are_skipped_with_a_reason_and_tested_again() -> None:
    batch = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    result = abcfx.coord_check(ZeroHead, batch, widths=WIDTHS, steps=1, control=False)
    assert result, str(result)
    assert result.steps > 1
    assert result.slope("head.weight", "init").verdict == "SKIP"
    assert result.slope("fixed.weight").verdict == "SKIP"
    assert "frozen" in result.slope("fixed.weight").reason
    first = [s for s in result.slopes if (s.node, s.statistic, s.step) == ("mid.weight", "update", 1)]
    assert "tested at the next step" in first[0].reason
    assert result.slope("mid.weight").verdict == "PASS"


def test_the_result_holds_rows_figures_and_data() -> None:
    result = check(widths=(32, 64), seeds=[3, 4], steps=1)
    values = {
        (each.width, each.seed): each.value
        for each in result.measurements
        if (each.node, each.statistic, each.step) == (HIDDEN, "update", 1)
    }
    assert set(values) == {(w, s) for w in (32, 64) for s in result.seeds}
    read = json.loads(result.to_json())
    assert read["verdict"] == result.verdict
    assert read["nodes"][READOUT] == "PASS"
    assert len(pytest.importorskip("pandas").DataFrame(result.rows)) == len(result.to_pandas())
    printed = str(result)
    assert "coordinate check: " in printed
    assert max(map(len, printed.splitlines())) <= 120
    pytest.importorskip("matplotlib")
    assert [len(half.axes) for half in result.plot().subfigs] == [2, 1]


def test_nothing_is_left_behind() -> None:
    """A check restores torch's random numbers and its number of threads."""
    torch.manual_seed(1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    check(widths=(64, 128), seeds=1, steps=1)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_few_tokens() -> None:
    def whole(part: Any) -> None:
        if trees.tensors(part)[0].shape[1] != 64:
            raise ValueError("fixed length")

    assert few_tokens(ids(), lambda part: None).shape == (2, 8)
    assert few_tokens(ids(), whole).shape == (2, 64)
    images = {"pixels": torch.zeros(16, 3, 8, 8), "labels": torch.zeros(16, dtype=torch.long)}
    assert [t.shape[0] for t in few_tokens(images, lambda part: None).values()] == [4, 4]
    with pytest.raises(ZeroDivisionError):
        few_tokens(ids(), lambda part: 1 / 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (64,)}, "at least two"),
        ({"seeds": 0}, "at least 1"),
        ({"base": 3}, "base= is not an option"),
        ({"optimizer": "lion"}, "prepare=lambda"),
        ({"optimizer": "unheard"}, "size of its update"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=message):
        check(**options)
    with pytest.raises(abcfx.errors.InvalidInputError, match="neither targets nor token ids"):
        abcfx.coord_check(ZeroHead, torch.randn(8, 8), widths=WIDTHS)


@pytest.mark.slow
def test_twenty_seeds() -> None:
    """In twenty checks with different seeds, our model passes and the standard parametrization fails."""
    results = [check(control=True, seeds=[100 + 3 * i, 101 + 3 * i, 102 + 3 * i]) for i in range(20)]
    assert [result.verdict for result in results] == ["PASS"] * 20
    assert [result.control for result in results] == ["FAIL"] * 20


class Window(nn.Module):
    """A model with a table of fixed size whose rows go straight into the first layer that grows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.first = nn.Embedding(11, 8), nn.Linear(32, width)
        self.mid, self.head = nn.Linear(width, width), nn.Linear(width, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mid(torch.relu(self.first(self.tok(ids).flatten(1))))))


def test_the_factor_of_the_next_layer_is_not_taken_for_that_of_a_lookup() -> None:
    ids = torch.arange(32).view(8, 4) % 11
    check = abcfx.coord_check(Window, (ids, ids[:, 0]), widths=(32, 64, 128), seeds=2, control=False)
    assert not check.failed, str(check)
