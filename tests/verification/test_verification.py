"""`abcfx verify` passes in every section, and fails when the subject of a section is broken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import abcfx
from abcfx import cli
from abcfx.checks import CoordCheck, TransferCheck
from abcfx.checks.curves import Shift
from abcfx.dynamic.measured import Moments
from abcfx.dynamic.rate_factors import RateFactors
from abcfx.lp.networks import Solution
from abcfx.plan.init import Init
from abcfx.verification import PARTS, document, figure, studies, verify, widths
from abcfx.verification.reference import reference

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parents[1] / "data"
FAST = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15}


def test_fast_sections_pass() -> None:
    state = torch.random.get_rng_state()
    found = verify(FAST)
    assert [(section.number, section.evidence.failed) for section in found] == [(number, []) for number in sorted(FAST)]
    assert found and torch.equal(torch.random.get_rng_state(), state)


def failing(*numbers: int) -> dict[int, list[str]]:
    return {section.number: [claim.name for claim in section.evidence.failed] for section in verify(numbers).failed}


def test_rows_of_the_lp_that_are_off_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha counts 0.1 more than it should: every rate is too small, and nothing is unstable."""
    rows = abcfx.find_c.__globals__["write_rows"]

    def off(*args: object) -> list[object]:
        return [row._replace(constant=row.constant - 0.1) if row.alignment == "alpha" else row for row in rows(*args)]

    monkeypatch.setitem(abcfx.find_c.__globals__, "write_rows", off)
    assert failing(1, 2, 3, 4, 5, 8, 10, 11).keys() == {1, 2, 3, 4, 5, 8, 10, 11}


def test_rates_that_are_too_large_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = abcfx.find_c.__globals__["NetworkSolver"].solve

    def lowered(self: Any) -> Solution[Any]:
        found = solve(self)
        c = (
            [value - 0.05 for value in found.c]
            if isinstance(found.c, list)
            else {k: v - 0.05 for k, v in found.c.items()}
        )
        return dataclasses.replace(found, c=c)

    monkeypatch.setattr(abcfx.find_c.__globals__["NetworkSolver"], "solve", lowered)
    found = failing(1, 2, 4, 5, 8, 11)
    assert found.keys() == {1, 2, 4, 5, 8, 11}
    assert "every r is at least 0" in found[4]


def test_a_solver_whose_answer_depends_on_the_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = abcfx.find_c.__globals__["NetworkSolver"].solve

    def moved(self: Any) -> Solution[Any]:
        found = solve(self)
        names = list(found.c) if isinstance(found.c, dict) else []
        c = {**found.c, names[0]: found.c[names[0]] + 1e-3} if names else found.c
        return dataclasses.replace(found, c=c)

    monkeypatch.setattr(abcfx.find_c.__globals__["NetworkSolver"], "solve", moved)
    assert any("another order" in claim for claim in failing(4)[4])


def test_powers_of_width_that_are_off_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "abcfx.plan.parameters._power", lambda n, exponent: 1.0 if n == 1 else float(n ** (0.9 * exponent))
    )
    assert failing(6, 7, 8).keys() == {6, 7, 8}
    rates = studies.Studies().rates
    assert rates["hidden"][128] != pytest.approx(rates["hidden"][64] / 2)


@pytest.mark.parametrize(
    ("shift", "control", "regret", "said"),
    [
        (0.1, -0.8, 0.2, None),
        (0.5, -0.8, 0.2, "the best lr moves by at most"),
        (0.1, -0.2, 0.2, "the best lr of the model as written moves"),
        (0.1, -0.8, 0.01, "at width 128 the best lr of width 64 costs the model as written"),
    ],
)
def test_rates_that_do_not_transfer_are_seen(shift: float, control: float, regret: float, said: str | None) -> None:
    curve = SimpleNamespace(model="standard", width=128, best=1.0, loss=2.0, error=0.0, regret=regret)
    runs = studies.Studies()
    runs.coordinates = cast("CoordCheck", SimpleNamespace(widths=(64, 128), seeds=(0,), verdict="PASS", control="FAIL"))
    transfer = SimpleNamespace(
        widths=(64, 128), seeds=(0, 1), steps=9, centre=0.1, curves=[curve], regret=(0.0, 0.0),
        shift=Shift(shift, 0.05, ()), control=Shift(control, 0.05, ()), curve=lambda width, model: curve,
    )  # fmt: skip
    runs.transfer = cast("TransferCheck", transfer)
    failed = [claim.name for claim in widths.width_transfer(runs).failed]
    assert len(failed) == (said is not None) and all(claim.startswith(str(said)) for claim in failed)


@pytest.mark.parametrize("broken", ["model", "std", "keys"])
def test_broken_modules_are_seen(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "model":
        monkeypatch.setattr("abcfx.pipeline.copied", lambda model: model)
        assert "the user's own model is left as it was" in failing(6)[6]
    elif broken == "std":
        draw = Init.apply_
        monkeypatch.setattr(Init, "apply_", lambda init, tensor: (draw(init, tensor), tensor.mul_(1.3)))
        assert failing(7)[7]
    else:
        monkeypatch.setattr("abcfx.verification.modules._trained", lambda result, x: torch.rand(3))
        assert [claim for claim in failing(6)[6] if "10 training steps" in claim]


def test_alignments_that_are_off_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Moments.alignment
    monkeypatch.setattr(Moments, "alignment", lambda self, n: (found := right(self, n)) and 2 * found)
    assert 9 in failing(9)


def test_dynamic_rates_that_go_the_wrong_way_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RateFactors.factors
    inverse = {"factors": lambda self, layers, c: {name: 1 / f for name, f in right(self, layers, c).items()}}
    monkeypatch.setattr(RateFactors, "factors", inverse["factors"])
    assert failing(10) == {10: ["the optimizer steps with the planned lr times n^-(c - planned c)"]}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "MAGNITUDE_WIDTHS", (64, 128))
    monkeypatch.setattr(studies, "TRAINING_STEPS", 60)


def test_a_run_that_does_not_learn_is_seen(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(RateFactors, "factors", lambda self, layers, c: dict.fromkeys(c, 300.0))
    found = failing(14)[14]
    assert any("with dynamic rates the model learns" in claim for claim in found)


def test_layers_that_grow_with_width_are_seen(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(
        "abcfx.plan.parameters._power", lambda n, exponent: 1.0 if exponent > 0 else float(n**-exponent)
    )
    assert failing(13)


def test_an_installation_with_a_missing_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abcfx, "__all__", [*abcfx.__all__, "nothing"])
    assert failing(15) == {15: ["every public name resolves"]}


@pytest.mark.slow
def test_a_panel_without_curves_is_seen(monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path) -> None:
    runs = studies.Studies(tmp_path / "figure.png")

    def problems() -> list[str]:
        return [claim.name for claim in figure.figure(runs).failed]

    assert problems() == []
    monkeypatch.setattr(figure, "_draw_alphas", lambda axis, study: None)
    assert problems() == ["figure.png is drawn"]
    runs.rates["hidden"][512] *= 1.1
    assert "learning rates are straight lines of slope -c" in problems()


def test_an_error_is_a_failure_of_its_section_and_debug_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr("abcfx.verification.training.measure", broken)
    assert cli.main(["verify", "--only", "9"]) == 1
    assert "the section runs to its end: RuntimeError: no" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        cli.main(["verify", "--only", "9", "--debug"])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--only", "2-3,9", "--details"]) == 0
    out = capsys.readouterr().out
    assert "a + c - alpha" in out and "verification: PASS" in out and "Alignment" in out
    assert cli.main(["verify", "--only", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "PASS" and found["rows"][0]["tables"][0]["rows"][0][-1] == "breaks"
    assert cli.main(["verify", "--list"]) == 0
    assert capsys.readouterr().out.count("\n") == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "17"], "sections are 1 to 16"),
        (["--only", "x"], "expected numbers of sections"),
        (["--only", "5-3"], "no section in that range"),
        (["--only", "3", "--write", "docs"], "--write needs all sections"),
    ],
)
def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert cli.main(["verify", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_packaged_rows_are_those_of_the_full_reference() -> None:
    full = {
        row["id"]: row for name in ("chain", "dag") for row in json.loads((DATA / f"find_c_{name}.json").read_text())
    }
    named = json.loads((DATA / "named_parametrizations.json").read_text())["rows"]
    for row in reference()["networks"]:
        source = full[row["id"]]
        assert all(value == source[key] for key, value in row.items() if key != "expected")
        for key, value in row["expected"].items():
            assert value == pytest.approx(source["expected"][key], abs=1e-8)
    known = {(row["parametrization"].lower(), row["optimizer"], row["alignment"]): row["c"] for row in named}
    assert len(reference()["named"]) == 36
    for table in reference()["named"]:
        assert table["c"] == known[table["parametrization"], table["optimizer"], table["alignment"]]


@pytest.mark.slow
def test_all_sections_pass_and_make_the_committed_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All sections pass, and the page has the structure of the committed one; its numbers are of another run."""
    assert cli.main(["verify", "--write", str(tmp_path), "--debug"]) == 0, capsys.readouterr().out
    page, committed = ((folder / "verification.md").read_text(encoding="utf-8") for folder in (tmp_path, ROOT / "docs"))
    for text in (page, committed):
        headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
        assert headings == [f"{part.number}. {part.title}" for part in PARTS]
        assert "16 of 16 sections pass" in text and "\n| FAIL |" not in text
    claims = [
        [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| PASS |")]
        for text in (page, committed)
    ]
    assert len(claims[0]) == len(claims[1]), "to fix: abcfx verify --write docs"
    assert (tmp_path / "verification.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_says_what_was_found() -> None:
    page = document(verify({2}))
    assert (
        "| PASS | muP is tight: every r is 0 | 0, 0, 0 |" in page and "1 of 1 sections pass, 3 of 3 claims hold" in page
    )
