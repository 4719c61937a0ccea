"""The printed report holds every number of the spec, shows repeated blocks once, and fits the page."""

from __future__ import annotations

import re
from collections.abc import Hashable

import pytest
import torch
from models import seeded, sequential, small_gpt
from torch import nn

import abcfx
from abcfx.dag.queries import find_skips, repeated_uses
from abcfx.exponents.dag_program import Binding, BindingKind
from abcfx.lp.names import BoundName, RowKind, RowLabel, RowName
from abcfx.report.binding import binding_tags, group_prices
from abcfx.report.names import collapse_names, tied_names
from abcfx.report.text import render

IDS = torch.zeros(2, 16, dtype=torch.long)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class ResidualMLP(nn.Module):
    """A model of several residual blocks that is cheap to trace."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.inp = nn.Linear(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.out = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Tied(nn.Module):
    """A model with a tied embedding, a layer that is used twice, and a layer whose multiplier a norm undoes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.loop = nn.Linear(width, width)
        self.free = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.loop(self.loop(self.embedding(ids)))
        return self.head(self.norm(self.free(x)))


@pytest.fixture(scope="module")
def gpt() -> abcfx.Transformed:
    wide, base = (small_gpt(d) for d in (64, 16))
    return abcfx.transform(wide, IDS, base=base, optimizer="adamw", lr=0.01, weight_decay=0.1)


@pytest.fixture(scope="module")
def deep() -> abcfx.Transformed:
    return abcfx.transform(seeded(ResidualMLP, 16, 48), torch.zeros(2, 10), base=seeded(ResidualMLP, 8, 48))


@pytest.fixture(scope="module")
def mlp() -> abcfx.Transformed:
    return abcfx.transform(sequential(128, 10, 4), lr=0.01)


@pytest.fixture(scope="module")
def tied() -> abcfx.Transformed:
    return abcfx.transform(seeded(Tied, 32), IDS, base=seeded(Tied, 8))


def row_of(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split() and line.split()[0] == name]
    return line.split()


def test_print_is_the_report_in_plain_text(gpt: abcfx.Transformed) -> None:
    text = str(gpt)
    assert text == render(gpt.outcome, width=100)
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_colour_settings_of_the_environment_change_nothing(
    gpt: abcfx.Transformed, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = str(gpt)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    assert str(gpt) == plain


def test_fits_in_100_columns(
    gpt: abcfx.Transformed, deep: abcfx.Transformed, mlp: abcfx.Transformed, tied: abcfx.Transformed
) -> None:
    for result in (gpt, deep, mlp, tied):
        assert max(map(len, str(result).splitlines())) <= 100


def test_numbers_are_never_cut_on_a_narrow_page(deep: abcfx.Transformed) -> None:
    text = render(deep.outcome, width=40)
    assert "…" not in text
    assert row_of(text, "inp.weight") == row_of(render(deep.outcome), "inp.weight")


def test_rows_carry_the_numbers_of_the_spec(mlp: abcfx.Transformed) -> None:
    text = str(mlp)
    for name in ("0.weight", "2.weight", "4.weight"):
        row, cells = mlp.spec[name], row_of(text, name)
        shown = [f"{row[key]:.3g}" for key in ("a", "b", "c", "multiplier", "std", "lr", "eps", "r")]
        assert cells[4:12] == shown
        assert cells[1] == row["role"]


def test_a_repeated_block_is_shown_once_with_its_count(deep: abcfx.Transformed) -> None:
    lines = str(deep).splitlines()
    block = lines.index("blocks.{0..47}")
    assert [line.split()[:2] for line in lines[block + 1 : block + 3]] == [["norm.weight", "48"], ["norm.bias", "48"]]
    table = lines[4 : lines.index("", 4)]
    assert len(table) < 20


def test_blocks_that_differ_are_not_folded() -> None:
    model = abcfx.transform(
        seeded(ResidualMLP, 16, 6),
        torch.zeros(2, 10),
        base=seeded(ResidualMLP, 8, 6),
        overrides=abcfx.Overrides(roles={"blocks.3.up": "plain"}),
    )
    text = str(model)
    assert "blocks.{0..2,4,5}.up.weight" in text
    assert "Left as the model has them (role plain): blocks.3.up.weight" in text


def test_every_parameter_is_counted_once(
    gpt: abcfx.Transformed, deep: abcfx.Transformed, tied: abcfx.Transformed
) -> None:
    for result in (gpt, deep, tied):
        text = str(result)
        table = text.split("─\n", 1)[1].split("\n\n", 1)[0]
        rows = [line for line in table.splitlines() if re.search(r" (rule|alpha|given|free)", line)]
        counts = [re.match(r"\s*\S+ +(\d+) [a-z]", line) for line in rows]
        assert sum(int(count[1]) if count else 1 for count in counts) == len(result.spec)


def test_groups_say_how_many_tensors_and_entries(gpt: abcfx.Transformed) -> None:
    text = str(gpt).split("Optimizer groups\n")[1]
    for i, group in enumerate(gpt.param_groups):
        cells = row_of(text.split("\n\n")[0], str(i))
        assert cells[1] == f"{group['lr']:.3g}"
        assert cells[4] == str(len(group["params"]))
        assert cells[5] == f"{sum(p.numel() for p in group['params']):,}"


def test_eps_and_decay_only_where_there_are_any(mlp: abcfx.Transformed, gpt: abcfx.Transformed) -> None:
    sgd = abcfx.transform(nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4)), optimizer="sgd")
    header = next(line for line in str(sgd).splitlines() if line.startswith("parameter "))
    assert "eps" not in header
    assert "decay" not in header
    assert " eps " in str(mlp)
    assert " decay " in str(gpt)


def test_roles_come_with_their_reason(gpt: abcfx.Transformed) -> None:
    text = " ".join(str(gpt).split())
    assert "readout (1): fan_in grows, fan_out does not, and it feeds an output of the model; head.weight" in text


def test_skips_ties_and_reuse_are_named(gpt: abcfx.Transformed, tied: abcfx.Transformed) -> None:
    assert "4 skip connections: past 2 layers (add -> add_1" in str(gpt)
    text = str(tied)
    assert "tied: embedding.weight = head.weight, one parameter" in text
    assert "used more than once: loop.weight: 2 (loop a = 0, loop#2 a = 0)" in text
    assert "No multiplier, because a norm follows and would undo it: free.weight" in text
    assert "skip" not in text


def test_frozen_parameters_are_reported() -> None:
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))
    model[0].bias.requires_grad_(False)
    assert "Frozen, so in no optimizer group: 0.bias" in str(abcfx.transform(model))


def test_own_init_near_no_round_exponent_is_said() -> None:
    def build(width: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 4))
        nn.init.normal_(model.get_parameter("2.weight"), std=width**-0.87)
        return model

    text = str(abcfx.transform(build(4096), torch.zeros(2, 10), base=build(64)))
    assert re.search(r"Init that follows no round power of the width, used as measured: 2.weight ~ m\^-0\.8\d", text)


def test_stages_and_size_of_the_lp(mlp: abcfx.Transformed) -> None:
    text = " ".join(str(mlp).split())
    assert f"Linear program: {mlp.header.rows} rows, {mlp.header.columns} columns" in text
    for stage in mlp.timings:
        assert re.search(rf"{stage} \d+\.\d", text)


def test_header_says_which_widths(mlp: abcfx.Transformed, deep: abcfx.Transformed) -> None:
    assert "no base: exponents are powers of n" in str(mlp)
    assert "m = 2, the largest ratio" in str(deep)
    same = abcfx.transform(seeded(ResidualMLP, 8, 1), torch.zeros(2, 10), base=seeded(ResidualMLP, 8, 1))
    assert "so nothing is changed" in str(same)


# -- the pieces


def test_fold_never_invents_a_name() -> None:
    names = ["a.0.x1", "a.0.x2", "a.1.x1", "a.2.x1", "a.2.x2", "b"]
    folded = collapse_names(dict.fromkeys(names))
    assert [part.shown for part in folded] == ["a.{0..2}.x1", "a.{0,2}.x2", "b"]
    assert sorted(name for part in folded for name in part.names) == names


def test_fold_keeps_unequal_rows_apart() -> None:
    assert [part.shown for part in collapse_names({"a.0": 1, "a.1": 2, "a.2": 1})] == ["a.{0,2}", "a.1"]


def test_skips_are_seen_where_branches_differ_in_layers(
    gpt: abcfx.Transformed, deep: abcfx.Transformed, mlp: abcfx.Transformed
) -> None:
    assert [(skip.fewest, skip.most) for skip in find_skips(gpt.outcome.dag)] == [(0, 2)] * 4
    assert len(find_skips(deep.outcome.dag)) == 48
    assert find_skips(mlp.outcome.dag) == []


def test_shared_weights(tied: abcfx.Transformed, gpt: abcfx.Transformed) -> None:
    assert tied_names(tied.module) == [["embedding.weight", "head.weight"]]
    assert set(repeated_uses(tied.outcome.dag)) == {"embedding.weight", "loop.weight"}
    assert repeated_uses(gpt.outcome.dag) == {}


def test_tags_and_prices() -> None:
    def row(node: str, kind: RowKind, other: str = "") -> RowName:
        return RowName(node, RowLabel(kind, other))

    rows = row("head", RowKind.ALPHA), row("head", RowKind.U), row("norm", RowKind.UPDATED_GRADIENT, "head")
    assert binding_tags(Binding(BindingKind.ROWS, rows)) == ("alpha", "u", "gradient")
    assert binding_tags(Binding(BindingKind.RULE)) == ("rule",)
    at_zero = BoundName("n", "r", ">=", 0.0)
    priced: dict[Hashable, float] = {
        row("a.0", RowKind.ALPHA): -1.0,
        row("a.1", RowKind.ALPHA): -1.0,
        row("b", RowKind.ALPHA): -3.0,
    }
    prices = group_prices({**priced, row("n", RowKind.INITIAL_GRADIENT, "b"): -9.0, at_zero: 5.0})
    assert [(p.tag, p.price, p.nodes) for p in prices] == [
        ("alpha", 3.0, ("b",)),
        ("alpha", 1.0, ("a.{0,1}",)),
        ("gradient", 9.0, ("n",)),
    ]


def test_a_model_without_layers_has_a_report() -> None:
    result = abcfx.transform(nn.ReLU(), torch.ones(2, 3), base=nn.ReLU())
    assert "0 parameters" in str(result)
