"""`abcfx demo` runs end to end with few steps, and its errors are one readable message."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from abcfx import cli
from abcfx.cli import demo as cli_demo
from abcfx.examples import demo
from abcfx.examples.text import read_characters

TINY = ["--base-width", "16", "--width", "32", "--steps", "4"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def losses(printed: str) -> dict[tuple[str, int], str]:
    """Read the losses by (model, width) from the printed table."""
    table = printed.split("against width")[1].splitlines()[2:6]
    cells = [line.rsplit(maxsplit=4) for line in table]
    return {(model, int(width)): loss for model, width, _, loss, _ in cells}


def test_demo_prints_the_report_the_losses_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["demo", *TINY, "--out", "pictures"]) == 0
    printed = capsys.readouterr().out
    assert "m = 2, the largest ratio" in printed
    assert "blocks.{0,1}" in printed
    found = losses(printed)
    assert set(found) == {(name, width) for name in ("as written", "transformed") for width in (16, 32)}
    assert found["as written", 16] == found["transformed", 16]
    assert found["as written", 32] != found["transformed", 32]
    assert (tmp_path / "pictures" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "pictures/demo.png" in printed


def test_demo_says_the_same_twice_and_depends_on_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> dict[tuple[str, int], str]:
        assert cli.main(["demo", *TINY, "--no-plot", "--seed", seed]) == 0
        return losses(capsys.readouterr().out)

    assert run("1") == run("1") != run("2")


def test_demo_without_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["demo", *TINY, "--no-plot"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "Curves" not in capsys.readouterr().out


def test_demo_without_matplotlib_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_demo, "find_spec", lambda name: None)
    assert cli.main(["demo", *TINY]) == 0
    assert "pip install 'abcfx[plot]'" in capsys.readouterr().out


def test_sweep_trains_the_base_width_only_and_names_the_best(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LEARNING_RATES", (1e-5, 1e-2))
    assert cli.main(["demo", "--base-width", "16", "--steps", "8", "--sweep"]) == 0
    printed = capsys.readouterr().out
    assert "width 16" in printed
    assert "Best: --lr 0.01" in printed


def test_demo_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *TINY, "--no-plot", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"]["width"] == 32
    assert [(run["model"], run["width"]) for run in found["runs"]][:2] == [("as written", 16), ("as written", 32)]
    assert all(0 < run["loss"] < 6 for run in found["runs"])


def test_the_default_rate_is_one_of_the_sweep() -> None:
    assert demo.Task().lr in demo.LEARNING_RATES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps=0; expected at least 1"),
        (["--width", "40"], "expected multiples of 16"),
        (["--base-width", "64", "--width", "32"], "narrower than the other"),
        (["--lr", "nan"], "expected a positive, finite number"),
        (["--steps", "1000000"], "steps see only fresh characters"),
    ],
)
def test_errors_are_one_message_on_stderr(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--no-plot", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err


def test_unexpected_errors_are_short_too_unless_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_demo, "read_characters", lambda: (_ for _ in ()).throw(FileNotFoundError("no sources")))
    assert cli.main(["demo", *TINY, "--no-plot"]) == 1
    assert capsys.readouterr().err.startswith("abcfx: FileNotFoundError:")
    with pytest.raises(FileNotFoundError):
        cli.main(["demo", *TINY, "--no-plot", "--debug"])


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_demo, "read_characters", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["demo", *TINY, "--no-plot"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["demo", "--steps", "many"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


# -- what is compared


def test_every_run_sees_the_same_fresh_text() -> None:
    task = dataclasses.replace(demo.Task(), steps=20)
    text = read_characters()
    assert len(text) > 1_000_000
    batches = [torch.cat([x, y[:, -1:]], 1) for x, y in demo.draw_batches(task, text)]
    again = [torch.cat([x, y[:, -1:]], 1) for x, y in demo.draw_batches(task, text)]
    assert all(map(torch.equal, batches, again))
    windows = text[: len(text) // 65 * 65].view(-1, 65)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[: 20 * 16]
    assert torch.equal(torch.cat(batches), windows[order].long())
    assert len(set(order.tolist())) == 20 * 16


def test_targets_are_the_next_characters() -> None:
    inputs, targets = next(demo.draw_batches(demo.Task(), torch.arange(16 * 65 * 300) % 128))
    assert torch.equal((inputs + 1) % 128, targets)


def test_the_demo_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    demo.build(demo.Task(), 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_standard_and_transformed_start_from_one_draw() -> None:
    task = dataclasses.replace(demo.Task(), base_width=16, width=32)
    model, result = demo.build(task, 32), demo.transform_gpt(task, 32)
    ours, theirs = dict(result.module.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, row in result.spec.items():
        torch.testing.assert_close(ours[name], theirs[name] * row["init_factor"])


def test_loss_is_the_mean_of_the_last_tenth() -> None:
    assert demo.Run("x", 16, 0.1, tuple(map(float, range(20)))).loss == 18.5
    assert demo.Run("x", 16, 0.1, (3.0,)).loss == 3.0
