"""DynamicAlignment changes rates only during the optimizer's step, works with schedulers, and resumes exactly."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import sequential
from torch import nn
from torch.optim import lr_scheduler
from typed import given

import abcfx
from abcfx.dynamic import wsd
from abcfx.exponents.dag_program import DagProgram
from abcfx.theory.parametrizations import Alignments

X = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 10, (128,), generator=torch.Generator().manual_seed(1))


class Run:
    """A small training run with DynamicAlignment."""

    def __init__(
        self,
        make_scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
        width: int = 128,
        batch: object = X,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.result = abcfx.transform(
            sequential(width, 64, 10), X, base=sequential(32, 64, 10), optimizer="adam", lr=3e-3
        )
        self.optimizer = torch.optim.Adam(self.result.groups(per_parameter=True))
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        self.dynamic = abcfx.DynamicAlignment(self.result, self.optimizer, **({"warmup": 2, "every": 1} | options))
        if batch is not None:
            self.dynamic.capture_initial(batch)
        self.used: list[list[float]] = []
        self.optimizer.register_step_pre_hook(lambda o, *_: self.used.append([g["lr"] for g in o.param_groups]))

    def step(self) -> float:
        loss = F.cross_entropy(self.result.module(X), Y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.dynamic.step()
        return loss.item()

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def test_warm_up_changes_nothing_and_then_rates_move() -> None:
    run = Run(warmup=2)
    planned = run.rates()
    for _ in range(3):
        run.step()
    assert run.used[:3] == [planned] * 3 and len(run.dynamic.history) == 3
    run.step()
    assert run.used[3] != planned
    assert run.rates() == planned  # what schedulers see
    row = run.dynamic.history[-1]
    assert {"step", "parameter", "alpha", "omega", "u", "c", "lr"} <= set(row)
    assert row["lr"] == pytest.approx(run.dynamic.factors["4.weight"] * planned[4])


def test_a_run_with_dynamic_rates_learns() -> None:
    run = Run(warmup=10, every=5, width=256)
    losses = [run.step() for _ in range(200)]
    assert 2.0 < losses[0] < 2.7 and losses[-1] < 0.4
    terms = [row[key] for row in run.dynamic.history for key in ("alpha", "omega", "u")]
    assert all(math.isfinite(value) for value in [*losses, *(term for term in terms if term is not None)])
    first = [row for row in run.dynamic.history if row["node"] == "0"]
    assert all(row["omega"] is None and row["u"] is None for row in first)  # its input never changes


def test_centred_factors_have_mean_one_and_leave_embeddings_alone() -> None:
    run = Run()
    for _ in range(6):
        run.step()
    factors = run.dynamic.factors
    assert set(factors) == {"2.weight", "4.weight"}
    assert math.prod(factors.values()) == pytest.approx(1.0)
    raw = Run(center=False)
    for _ in range(6):
        raw.step()
    assert all(value >= 1 for value in raw.dynamic.factors.values())  # no c above the full one


def test_measuring_alone_changes_no_rate() -> None:
    run, plain = Run(apply=False), Run(warmup=1000)
    assert [run.step() for _ in range(8)] == [plain.step() for _ in range(8)]
    assert run.dynamic.history and not run.dynamic.factors


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 200, eta_min=1e-4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, [g["lr"] for g in o.param_groups], total_steps=201, cycle_momentum=False
    ),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=100),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 50), lr_scheduler.ExponentialLR(o, 0.99)], [50]
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=3, threshold=0.1),
    "wsd": lambda o: wsd(o, 200, warmup=20),
}  # fmt: skip


def advance(scheduler: lr_scheduler.LRScheduler, loss: torch.Tensor) -> None:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of SequentialLR's own
@pytest.mark.parametrize("after", [True, False], ids=["scheduler last", "dynamic last"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rate_is_the_scheduled_one_times_the_factor(name: str, after: bool) -> None:
    run = Run(SCHEDULERS[name], warmup=5, every=20, width=64)
    names = [g["param_names"][0] for g in run.optimizer.param_groups]
    planned = [run.result.spec[each]["lr"] for each in names]
    alone = torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in planned])
    reference = SCHEDULERS[name](alone)
    for index in range(200):
        factors = [run.dynamic.factors.get(each, 1.0) for each in names]
        expected = [group["lr"] * factor for group, factor in zip(alone.param_groups, factors, strict=True)]
        loss = F.cross_entropy(run.result.module(X), Y)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        alone.step()
        assert run.used[index] == pytest.approx(expected, rel=1e-12)
        if not after:
            advance(given(run.scheduler), loss)
        run.dynamic.step()
        if after:
            advance(given(run.scheduler), loss)
        advance(reference, loss)


def test_factors_stay_while_the_rates_decay() -> None:
    run = Run(lambda o: wsd(o, 20, decay=0.5), warmup=2, every=1)
    run.dynamic.scheduler = run.scheduler
    seen = []
    for _ in range(20):
        run.step()
        given(run.scheduler).step()
        seen.append(dict(run.dynamic.factors))
    assert seen[8] != seen[9] and all(each == seen[10] for each in seen[11:])


@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_run_is_the_same_bit_for_bit(stop: int) -> None:
    straight, losses = Run(warmup=3, every=2), []
    for _ in range(14):
        losses.append(straight.step())
    first = Run(warmup=3, every=2)
    for _ in range(stop):
        first.step()
    file = io.BytesIO()
    parts: dict[str, Any] = {"model": first.result.module, "optimizer": first.optimizer, "dynamic": first.dynamic}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    state, again = torch.load(file, weights_only=True), Run(warmup=3, every=2, batch=None)
    again.result.module.load_state_dict(state["model"])
    again.optimizer.load_state_dict(state["optimizer"])
    again.dynamic.load_state_dict(state["dynamic"])
    assert [again.step() for _ in range(14 - stop)] == losses[stop:]
    assert again.dynamic.history == straight.dynamic.history


def test_bad_use_is_refused() -> None:
    run = Run(batch=None)
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"before capture_initial"):
        run.dynamic.step()
    merged = abcfx.transform(sequential(64, 64, 10), X, base=sequential(32, 64, 10))
    with pytest.raises(abcfx.errors.InvalidInputError, match="per_parameter=True"):
        abcfx.DynamicAlignment(merged, torch.optim.Adam(merged.param_groups))
    wrongs: list[dict[str, Any]] = [{"every": 0}, {"smoothing": 1.0}, {"cap": "half"}, {"trust": 1.0}]
    for wrong in wrongs:
        with pytest.raises(abcfx.errors.InvalidInputError, match=next(iter(wrong))):
            Run(**wrong)
    with pytest.raises(abcfx.errors.InvalidInputError, match="cannot be called with these inputs"):
        Run(batch=(X, Y))


class Net(nn.Module):
    """A model with convolutions, a recurrent layer and attention from a fused layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, groups=2)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rnn, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(torch.relu(self.stem(x)))).flatten(2).transpose(1, 2)
        q, k, v = (z.unflatten(-1, (-1, 8)).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("options", [{}, {"apply": "inplace"}, {"capture": "export"}])
def test_other_layers_and_ways_to_apply(options: dict[str, Any]) -> None:
    x, y = torch.randn(40, 3, 6, 6), torch.randint(0, 5, (40,))
    result = abcfx.transform(Net(32), x, base=Net(16), lr=1e-2, **options)
    optimizer = torch.optim.Adam(result.groups(per_parameter=True))
    dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=0, every=1)
    dynamic.capture_initial(x)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(result.module(x), y).backward()
        optimizer.step()
        dynamic.step()
    measured = {row["node"] for row in dynamic.history}
    assert {"conv", "qkv", "out", "head"} <= measured
    assert any("rnn" in node for node in dynamic.left_out)
    kept = [row["alpha"] for row in dynamic.history if row["alpha"] is not None]
    assert all(0.2 < value < 1.1 for value in kept)


def test_memory_is_a_small_part_of_the_models() -> None:
    model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    result = abcfx.transform(model, X)
    dynamic = abcfx.DynamicAlignment(result, torch.optim.Adam(result.groups(per_parameter=True)))
    dynamic.capture_initial(X)
    state = dynamic.state_dict()["probe"]
    held = {id(t): t.numel() for part in (state["inputs"], state["first"]["kept"]) for t in part.values()}
    assert sum(held.values()) < 0.05 * sum(p.numel() for p in model.parameters())


def test_rates_off_the_last_basis_are_those_of_a_new_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small moves keep the basis and take no simplex at all, jumps do not; the same alignments give the same rates."""
    analysis = Run(batch=None).result.outcome
    warm = DagProgram(analysis.fixed, analysis.alignments)
    generator = torch.Generator().manual_seed(0)
    solves: list[int] = []
    whole = warm.solver._optimum

    def counted() -> Any:
        solves.append(1)
        return whole()

    monkeypatch.setattr(warm.solver, "_optimum", counted)
    alignment = dict(analysis.alignments)
    for step in range(40):
        size = 0.3 if step % 10 == 0 else 0.01
        for node, terms in alignment.items():
            moved = torch.tensor(terms) + size * torch.randn(3, generator=generator)
            alignment[node] = Alignments(*moved.clamp(0.5, 1.0).tolist())
        cold = DagProgram(analysis.fixed, alignment)
        assert warm.rates(alignment) == pytest.approx(cold.rates(alignment), abs=1e-12)
    assert 0 < len(solves) < 20


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_have_the_rates_of_one_process_on_the_joined_batch(tmp_path: Path, how: str) -> None:
    script = Path(__file__).parent / "two_ranks.py"
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    factors = []
    for world in (1, 2):
        address = f"file://{tmp_path}/{world}"
        commands = [[sys.executable, str(script), str(rank), str(world), address, how] for rank in range(world)]
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for command in commands]
        try:
            for rank in ranks:
                output, _ = rank.communicate(timeout=200)
                assert rank.returncode == 0
                factors.append(json.loads(output.splitlines()[-1]))
        finally:  # a rank that hangs is not left to the tests that follow
            for rank in ranks:
                rank.kill()
                rank.communicate()
    alone, first, second = factors
    assert first == second and first
    assert first == pytest.approx(alone, rel=1e-6)
