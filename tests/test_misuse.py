"""Misuse of public functions and commands ends in one clear error and changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import abcfx
import abcfx.capture
import abcfx.verification
from abcfx.cli import main
from abcfx.errors import AbcfxError


def mlp(width: int = 8) -> nn.Sequential:
    """Return a model of two layers."""
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


X = torch.ones(5, 4)
BATCH = (X, torch.zeros(5, dtype=torch.long))
NAN = float("nan")
# The errors are meant for untyped code as well.
_ANY: Any = abcfx


def _transform(**options: object) -> object:
    return _ANY.transform(mlp(), X, **({"base": mlp(4)} | options))


def _check(**options: object) -> Any:
    return _ANY.coord_check(options.pop("make", mlp), options.pop("batch", BATCH), **({"widths": (8, 16)} | options))


def _transfer(**options: object) -> object:
    return _ANY.transfer_check(mlp, options.pop("batches", [BATCH] * 60), **({"widths": (8, 16)} | options))


def _find_c(a: object, b: object = (0, 0, 0)) -> object:
    return _ANY.find_c(a, b, 1, 0.5, 1)


def _row(**changed: object) -> object:
    """Make groups from a spec in which one row was changed."""
    spec = json.loads(abcfx.transform(mlp(), X, base=mlp(4)).spec.to_json())
    spec["parameters"]["0.weight"] |= changed
    return _ANY.param_groups(mlp(), spec)


def _state(**changed: object) -> object:
    """Load a saved state of dynamic alignment in which something was changed."""
    made = abcfx.transform(mlp(), X, base=mlp(4))
    dynamic = _ANY.DynamicAlignment(made, torch.optim.AdamW(made.groups(per_parameter=True)))
    dynamic.capture_initial(X)
    before = dynamic.state_dict()
    try:
        return dynamic.load_state_dict({**before, **changed})
    finally:
        after = dynamic.state_dict()
        assert {key: after[key] for key in after if key != "probe"} == {
            key: before[key] for key in before if key != "probe"
        }


def _override(target: object, rule: object) -> None:
    with _ANY.rules.override(target, rule):
        raise AssertionError("not refused")


CONNECTION: Any = abcfx.hyper_connections.HyperConnection(8)
STREAMS = torch.ones(2, 3, 4, 8)
OPTIMIZER = torch.optim.SGD(mlp().parameters(), 0.1)
verify: Any = abcfx.verification.verify


class Unprintable:
    """A value whose text cannot be made."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __float__ = __repr__


class Net(nn.Module):
    """A model that needs an argument, given as a class by mistake."""

    def __init__(self, width: int) -> None:
        """Make one layer."""
        super().__init__()
        self.layer = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        return self.layer(x)


def _dynamic(result: object = None, optimizer: object = None, **options: object) -> object:
    made = abcfx.transform(mlp(), X, base=mlp(4))
    chosen = torch.optim.AdamW(made.param_groups) if optimizer is None else optimizer
    return _ANY.DynamicAlignment(made if result is None else result, chosen, **options)


CASES: dict[str, Callable[[], object]] = {
    "eps=nan": lambda: _transform(eps=NAN),
    "lr=True": lambda: _transform(lr=True),
    "lr=text": lambda: _transform(lr="0.1"),
    "lr=huge": lambda: _transform(lr=10**400),
    "lr=role": lambda: _transform(lr={"hiden": 0.1}),
    "alignment": lambda: _transform(parametrization=_ANY.Parametrization(alignment=(-5, 0, 0))),
    "exponents": lambda: _transform(overrides=_ANY.Overrides(exponents={"w": 3})),
    "no_decay=text": lambda: _ANY.Overrides(no_decay="vector"),
    "no_decay=[3]": lambda: _ANY.Overrides(no_decay=[3]),
    "no_decay=5": lambda: _ANY.Overrides(no_decay=5),
    "roles=text": lambda: _ANY.Overrides(roles="hidden"),
    "outputs=5": lambda: _ANY.Capture(outputs=5),
    "no entries": lambda: abcfx.transform(mlp(), torch.ones(0, 4), base=mlp(4)),
    "two inputs": lambda: _ANY.transform(mlp(), X, X),
    "base shape": lambda: _transform(base={"0.weight": "x"}, init="keep"),
    "base=3": lambda: _transform(base=3),
    "model=class": lambda: _ANY.transform(Net, X),
    "init like text": lambda: _ANY.transform(
        mlp().to("meta"), X.to("meta"), base=mlp(4).to("meta"), init=_ANY.InitLike(3, "x")
    ),
    "make_model without a width": lambda: _check(make=lambda: mlp()),
    "inputs without a model": lambda: _ANY.hyper_connections.diagnose((8, 16), args=X),
    "model=None": lambda: _ANY.transform(None, X),
    "explain=3": lambda: _ANY.transform(mlp(), X).explain(3),
    "html=3": lambda: _ANY.transform(mlp(), X).to_html(3),
    "html=folder": lambda: _ANY.transform(mlp(), X).to_html("tests"),
    "html=nowhere": lambda: _ANY.transform(mlp(), X).to_html("no/such/folder/x.html"),
    "find_c 0-d": lambda: _find_c(torch.tensor(1.0)),
    "find_c generator": lambda: _find_c(i for i in (0, 0, 0)),
    "find_c None": lambda: _find_c(None),
    "find_c set": lambda: _find_c({0, 1, 2}),
    "find_c 10**400": lambda: _find_c([10**400, 0, 0]),
    "find_c 2e15": lambda: _find_c([2e15, 0, 0]),
    "find_c nan": lambda: _find_c([NAN, 0, 0]),
    "find_c_dag": lambda: _ANY.find_c_dag(3),
    "widths=text": lambda: _check(widths=("a", "b")),
    "widths=16": lambda: _check(widths=16),
    "widths=16.5": lambda: _check(widths=(16.5, 32)),
    "widths=one": lambda: _check(widths=(8,)),
    "widths=negative": lambda: _check(widths=(8, -16)),
    "steps=0": lambda: _check(steps=0),
    "steps=1.5": lambda: _check(steps=1.5),
    "seeds=0": lambda: _check(seeds=0),
    "seeds=text": lambda: _check(seeds="a"),
    "loss=3": lambda: _check(loss=3),
    "make=module": lambda: _check(make=mlp()),
    "batch=empty": lambda: _check(batch=(X[:0], BATCH[1][:0])),
    "lrs=text": lambda: _transfer(lrs=["a"]),
    "lrs=nan": lambda: _transfer(lrs=[NAN, 1, 2]),
    "lrs=none": lambda: _transfer(lrs=[]),
    "batches=None": lambda: _transfer(batches=None),
    "tune batches": lambda: _ANY.tune(mlp, None, width=8),
    "every=1.5": lambda: _dynamic(every=1.5),
    "max_tokens=0": lambda: _dynamic(max_tokens=0),
    "no optimizer": lambda: _dynamic(optimizer=[]),
    "optimizer=3": lambda: _dynamic(optimizer=3),
    "result=3": lambda: _dynamic(result=3, optimizer=torch.optim.SGD(mlp().parameters(), 0.1)),
    "diagnose": lambda: _ANY.hyper_connections.diagnose(3),
    "misspelt option": lambda: _transform(optimiser="adam"),
    "misspelt option of a check": lambda: _check(optimiser="adam"),
    "factory raises": lambda: _transform(base=lambda: 1 / 0),
    "make_model raises": lambda: _check(make=lambda width: 1 / 0),
    "loss raises": lambda: _check(loss=lambda output, batch: 1 / 0),
    "targets beyond classes": lambda: _check(batch=(X, BATCH[1] + 7)),
    "repr raises": lambda: _transform(lr=Unprintable()),
    "repr raises in find_c": lambda: _find_c([Unprintable()] * 3),
    "html with a null byte": lambda: _ANY.transform(mlp(), X).to_html("a\0.html"),
    "html with a long name": lambda: _ANY.transform(mlp(), X).to_html("a" * 5000),
    "wrong sizes of capture": lambda: _ANY.capture.capture(mlp(), X, sizes="closed"),
    "no model to capture": lambda: _ANY.capture.capture(None),
    "streams of a forward": lambda: CONNECTION(torch.ones(2, 3, 5, 8)),
    "streams of integers": lambda: CONNECTION(torch.ones(2, 3, 4, 8, dtype=torch.long)),
    "streams without dims": lambda: CONNECTION.weights(torch.tensor(1.0)),
    "update with the output first": lambda: CONNECTION.update(STREAMS[..., 0, :], STREAMS, *CONNECTION(STREAMS)[1:]),
    "streams of a head": lambda: _ANY.hyper_connections.HyperHead(8)(torch.ones(2, 6)),
    "streams of no number": lambda: _ANY.hyper_connections.stream_weights(
        STREAMS, *CONNECTION.parameters(), streams="4"
    ),
    "generator of another width": lambda: _ANY.hyper_connections.stream_weights(
        STREAMS[..., :7], *CONNECTION.parameters(), streams=4
    ),
    "gates of two shapes": lambda: _ANY.hyper_connections.gate_statistics(torch.ones(2, 3), torch.ones(5, 7)),
    "device": lambda: _ANY.hyper_connections.gauge_projector(4, device="nosuch"),
    "sparse logits": lambda: _ANY.hyper_connections.sinkhorn(torch.eye(4).to_sparse()),
    "rule without an op": lambda: _ANY.rules.register_rule(),
    "rule without parentheses": lambda: _ANY.rules.register_rule(lambda op, x: op.same(x)),
    "optimizer of a copy": lambda: _ANY.grow(mlp(4), mlp(), X, optimizer=torch.optim.Adam(mlp(4).parameters())),
    "grown into itself": lambda: (lambda small: _ANY.grow(small, nn.Sequential(*small), X))(mlp(4)),
    "warm-up beyond the decay": lambda: _ANY.dynamic.wsd(torch.optim.SGD(mlp().parameters(), 0.1), 10, warmup=9),
    "one optimizer twice": lambda: _dynamic(optimizer=[OPTIMIZER, OPTIMIZER]),
    "growth of no models": lambda: _ANY.growing.plan_growth(3),
    "slope of no layer": lambda: _check(steps=1, seeds=1).slope("nosuch"),
    "no sections": lambda: verify([]),
    "a section as text": lambda: verify(["1"]),
}


# One table of wrong values for arguments of one kind each: none of them may end in anything but an error of abcfx.
WRONG: dict[str, object] = {
    "None": None,
    "text": "x",
    "nan": NAN,
    "object": object(),
    "list": [],
    "dict": {"a": 1},
    "class": Net,
    "no entries": torch.empty(0),
    "meta": torch.empty(3, device="meta"),
    "huge": 10**400,
}
ARGUMENTS: dict[str, tuple[Callable[[object], object], tuple[str, ...]]] = {
    "model": (lambda v: _ANY.transform(v, X), ()),
    "base": (lambda v: _transform(base=v), ("None",)),
    "wider_base": (lambda v: _ANY.Parametrization(wider_base=v), ()),
    "exponents": (lambda v: _transform(overrides=_ANY.Overrides(exponents=v)), ("None",)),
    "family name": (lambda v: _ANY.OptimizerFamily(v, "sign"), ("text",)),
    "family absorb": (lambda v: _ANY.OptimizerFamily("mine", "sign", absorb=v), ("None",)),
    "unused optimizer": (lambda v: _transform(optimizer={"hidden": v, "default": "adam"}), ()),
    "scaled": (lambda v: _ANY.scaled(v, 0.5), ()),
    "scaled a": (lambda v: _ANY.scaled(nn.Linear(2, 2), v), ()),
    "override": (lambda v: _override("abs", v), ("class",)),
    "override target": (lambda v: _override(v, lambda op, x: op.same(x)), ("text", "class")),
    "make_model returns": (lambda v: _check(make=lambda width: v), ()),
    "batch": (lambda v: _check(batch=v), ()),
    "batches": (lambda v: _transfer(batches=lambda seed: v, backend="sequential", steps=5), ()),
    "loss returns": (lambda v: _check(loss=lambda output, batch: v), ()),
    "control": (lambda v: _check(control=v), ()),
    "base_width": (lambda v: _check(base_width=v), ("None",)),
    "prepare": (lambda v: _check(prepare=v), ("None",)),
    "prepare returns": (lambda v: _check(prepare=lambda result, width: v), ("None", "list", "no entries")),
    "backend": (lambda v: _transfer(backend=v), ()),
    "n_jobs": (lambda v: _transfer(n_jobs=v), ()),
    "roles": (lambda v: _ANY.tune(mlp, [BATCH] * 150, width=8, roles=v), ()),
    "budget": (lambda v: _ANY.tune(mlp, [BATCH] * 150, width=8, budget=v), ()),
    "grow kwargs": (lambda v: _ANY.grow(mlp(4), mlp(), X, v), ("None",)),
    "grow noise": (lambda v: _ANY.grow(mlp(4), mlp(), X, noise=v), ()),
    "grow seed": (lambda v: _ANY.grow(mlp(4), mlp(), X, seed=v), ()),
    "zero_output": (lambda v: _ANY.grow(mlp(4), mlp(), X, zero_output=v), ()),
    "growth batch": (lambda v: _ANY.verify_growth(mlp(4), mlp(), v), ()),
    "growth checks": (lambda v: _ANY.verify_growth(mlp(4), mlp(), BATCH, checks=v), ()),
    "alpha": (lambda v: _ANY.find_c([-0.5, 0, 0.5], [0.5] * 3, v, 0.5, 1), ()),
    "feature_learning": (
        lambda v: _ANY.find_c([-0.5, 0, 0.5], [0.5] * 3, 1, 0.5, 1, feature_learning=v),
        (),
    ),
    "module of groups": (lambda v: _ANY.param_groups(v, _ANY.transform(mlp(), X).spec), ()),
    "spec": (lambda v: _ANY.param_groups(mlp(), v), ()),
    "row": (lambda v: _row(lr=v), ()),
    "row eps": (lambda v: _row(eps=v), ("None",)),
    "row role": (lambda v: _row(role=v), ()),
    "state": (lambda v: _state(alignment=v), ()),
    "steps of a state": (lambda v: _state(steps=v), ()),
    "probe of a state": (lambda v: _state(probe=v), ()),
    "inputs": (lambda v: _ANY.hyper_connections.find_hyper_connections(mlp(), v), ()),
    "streams": (lambda v: _ANY.hyper_connections.diagnose((8, 16), streams=v), ()),
    "eps": (lambda v: _ANY.hyper_connections.diagnose((8, 16), eps=v), ()),
    "mix": (lambda v: _ANY.hyper_connections.spectrum(v), ()),
    "dim": (lambda v: _ANY.hyper_connections.HyperConnection(v), ()),
    "measured": (lambda v: _ANY.dynamic.measure(v, torch.ones(3, 4), torch.ones(2, 4), torch.ones(3, 4), 4), ()),
    "wsd": (lambda v: _ANY.dynamic.wsd(v, 10), ()),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_wrong_values(argument: str) -> None:
    """Values of ten wrong kinds are refused for every argument, but for those that mean something there."""
    call, allowed = ARGUMENTS[argument]
    for name, value in WRONG.items():
        if name in allowed:
            continue
        try:
            call(value)
        except AbcfxError:
            continue
        raise AssertionError(f"{argument}: {name} was taken")


@pytest.mark.parametrize("case", CASES)
def test_misuse(case: str) -> None:
    """Each misuse is refused by an error of abcfx."""
    with pytest.raises(AbcfxError):
        CASES[case]()


FILES = {"empty.json": b"", "cut.json": b'{"a": [', "bytes.json": b"\xfa\x00\xff", "deep.json": b"[" * 100_000}
COMMANDS = (
    *(["solve", name] for name in FILES),
    ["report", "raises.py:f"],
    ["report", "wrong.py:f"],
    ["report", "bytes.py:f"],
    ["report", "missing.py:f"],
    ["report", "model.py:f", "--lr", "nan"],
    ["report", "model.py:f", "--html", "no/such/x.html"],
    ["report", "model.py:f", "--html", "link.html"],
    ["coord-check", "model.py:f", "--batch", "x", "--widths", "16"],
    ["coord-check", "model.py:f", "--batch", "x", "--widths", "8,16", "--plot", "x.nosuch"],
    ["coord-check", "model.py:f", "--batch", "x", "--widths", "8,16", "--kwargs", "nosuch=1"],
    ["transfer-check", "model.py:f", "--batches", "[x] * 60", "--widths", "8,16", "--backend", "nosuch"],
    ["transfer-check", "model.py:f", "--batches", "[x] * 60", "--widths", "8,16", "--lrs", "a,b"],
    *(["hyper-connections", "model.py:f", "--inputs", "x", "--checkpoint", name] for name in FILES),
    ["solve", "n" * 5000],
    ["report", "model.py:f(width=1/0)"],
    ["report", "model.py:f", "--html", "/dev/full"],
    ["verify", "--only", "1-999999999"],
    ["demo", "--out", "model.py"],
    ["verify", "--write", "model.py"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:60])
def test_misuse_of_commands(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ends with status 1 and a message of abcfx's own that names the file or the option; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    model = b"import torch\nx = torch.ones(5, 4)\ndef f(width=8):\n    return torch.nn.Linear(4, width)\n"
    python = {"raises.py": b"1 / 0", "wrong.py": b"def f(:", "bytes.py": b"\xfa\x00", "missing.py": b"import no_such"}
    for name, content in {**FILES, **python, "model.py": model}.items():
        (tmp_path / name).write_bytes(content)
    if command[-1] == "/dev/full" and not Path("/dev/full").exists():
        pytest.skip("this system has no file that cannot be written")
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "--debug" not in said, said
    named = command[1].partition(":")[0], command[-2].strip("-"), command[-1].partition("=")[0]
    assert any(each[:50] in said for each in named), said
    assert not (tmp_path / "elsewhere.html").exists()
