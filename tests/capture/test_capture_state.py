"""A capture leaves the model as it was, and does not freeze what a model keeps in Python from call to call."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from models import TwoLayers
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import abcfx
from abcfx.capture import capture
from abcfx.errors import InvalidInputError, UncapturableError
from abcfx.plan.options import ApplyMode

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
COUNT = {"calls": 0}


# Buffers and random numbers


class Counts(nn.Module):
    """Spectral norms, batch norm, and a buffer that counts calls."""

    steps: torch.Tensor

    def __init__(self, width: int, adds: bool = True) -> None:
        super().__init__()
        self.first, self.last = spectral_norm(nn.Linear(6, width)), spectral_norm(nn.Linear(width, 3))
        self.norm, self.adds = nn.BatchNorm1d(width), adds
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.adds:
            self.steps += 1
        y: torch.Tensor = self.last(torch.relu(self.norm(self.first(x)))) * torch.clamp(self.steps / 4, max=1.0)
        return y


@pytest.mark.parametrize(("apply", "adds"), [("insert", True), ("absorb", False), ("inplace", True)])
def test_buffers_of_model_and_result_are_those_of_the_model(apply: ApplyMode, adds: bool) -> None:
    torch.manual_seed(0)
    model, base, same = Counts(16, adds), Counts(16, adds), Counts(16, adds)
    for _ in range(3):
        model(X), base(X)
    same.load_state_dict(model.state_dict())
    before = {name: buffer.clone() for name, buffer in (*model.named_buffers(), *base.named_buffers("base"))}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    result = abcfx.transform(model, X, base=base, apply=apply)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    for name, buffer in (*model.named_buffers(), *base.named_buffers("base"), *result.module.named_buffers()):
        assert torch.equal(buffer, before[name]), name
    for training in (False, True, True):
        torch.testing.assert_close(result.module.train(training)(X), same.train(training)(X))
    for name, buffer in same.named_buffers():
        torch.testing.assert_close(result.module.get_buffer(name), buffer)


class WritesParameter(TwoLayers):
    """Keeps a running mean in a parameter that does not learn, written in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        if self.training:
            self.mean.data.lerp_(y.detach().mean(0), 0.1)
        z: torch.Tensor = self.last(y - self.mean)
        return z


def test_a_parameter_that_forward_writes_is_put_back() -> None:
    model = WritesParameter()
    module = capture(model, X).module
    assert torch.equal(model.mean, torch.zeros(8))
    outputs = [module(X) for _ in range(3)]
    model.mean.data.zero_()
    torch.testing.assert_close(outputs, [model(X) for _ in range(3)])


# State in Python


class Ramps(TwoLayers):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x) * min(1.0, self.calls / 10)


class Warms(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return self.layers(x) if self.step > 100 else self.layers(2 * x)


class RampsInClass(TwoLayers):
    total = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).total += 1
        return self.layers(x) * min(1.0, self.total / 10)


class Record:
    calls: int = 0


class RampsInObject(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.records = [Record()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.records[0].calls += 1
        return self.layers(x) * min(1.0, self.records[0].calls / 10)


class RampsInGlobal(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        COUNT["calls"] += 1
        return self.layers(x) * min(1.0, COUNT["calls"] / 10)


class RampsInClosure(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        calls = 0

        def factor() -> float:
            nonlocal calls
            calls += 1
            return min(1.0, calls / 10)

        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.factor()


class AveragesInPlainTensor(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        self.average.mul_(0.9).add_(y.detach().mean(0))
        return y - self.average


class RemembersList(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(1)
        return self.layers(x) / len(self.seen)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Ramps, r"calls .*test_capture_state\.py:\d+: self\.calls \+= 1"),
        (Warms, r"step .*self\.step \+= 1"),
        (RampsInClass, r"RampsInClass\.total .*type\(self\)\.total \+= 1"),
        (RampsInObject, r"records\[0\]\.calls .*self\.records\[0\]\.calls \+= 1"),
        (RampsInGlobal, r"COUNT .*COUNT\[\"calls\"\] \+= 1"),
        (RampsInClosure, r"factor\.calls "),
        (AveragesInPlainTensor, r"average .*self\.average\.mul_"),
        (RemembersList, r"seen .*self\.seen\.append"),
    ],
)
def test_state_on_which_the_output_depends_is_refused_by_path_and_line(kind: type[TwoLayers], named: str) -> None:
    model = kind()
    states = {name: repr(value) for name, value in vars(model).items() if name[0] != "_"}
    with pytest.raises(UncapturableError, match=r"(?s)state in Python.*" + named + r".*To fix: .*register_buffer"):
        capture(model, X)
    assert states == {name: repr(value) for name, value in vars(model).items() if name[0] != "_"}
    assert COUNT == {"calls": 0} and RampsInClass.total == 0


class KeepsLoss(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        self.last_loss = y.square().mean()
        return y


class Appends(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.history.append(x.mean())
        return self.layers(x)


class OnlyCounts(TwoLayers):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x)


class Caches(TwoLayers):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.table: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None or self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1], dtype=x.dtype, device=x.device) / 6
        return self.layers(x * self.table)


class RegistersInForward(TwoLayers):
    mask: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(x.shape[1]))
        return self.layers(x * self.mask)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (KeepsLoss, "last_loss (not set before a call, a tensor after it"),
        (Appends, "history (0 items before a call, 1 item after it"),
        (OnlyCounts, "calls (not set before a call, 1 after it"),
        (Caches, "table (None before a call, a tensor after it"),
        (RegistersInForward, "mask (not set before a call, a tensor after it"),
    ],
)
def test_state_that_only_gets_lost_is_told_in_a_note(kind: type[TwoLayers], named: str) -> None:
    model = kind()
    captured = capture(model, X)
    assert any(named in note for note in captured.notes), captured.notes
    torch.testing.assert_close([captured.module(X) for _ in range(3)], [model(X) for _ in range(3)])


def test_in_place_the_models_own_forward_keeps_its_state() -> None:
    result = abcfx.transform(Ramps(), X, base=Ramps(), apply="inplace")
    assert any("calls (not set before a call, 1 after it" in note for note in result.notes)
    first = result.module(X)
    torch.testing.assert_close(result.module(X), 2 * first)


@pytest.mark.parametrize("kind", [Caches, RegistersInForward])
@pytest.mark.parametrize("called", ["base", "model"])
def test_a_model_and_a_base_of_which_one_was_called_before_are_paired(kind: type[TwoLayers], called: str) -> None:
    model, base = kind(32), kind(8)
    fresh = abcfx.transform(kind(32), X, base=kind(8))
    (base if called == "base" else model)(X)
    result = abcfx.transform(model, X, base=base)
    assert {name: row.c for name, row in result.plan.items()} == {name: row.c for name, row in fresh.plan.items()}
    assert "mask" in dict(base.named_buffers()) or called == "model" or kind is Caches
    other = torch.rand(2, 6)
    torch.testing.assert_close(result.module.state_dict()["first.weight"].shape, model.first.weight.shape)
    assert result.module(other).shape == (2, 3)


# Numbers among the inputs


class Weighted(TwoLayers):
    def forward(self, x: torch.Tensor, weights: object = None, factor: float = 2.0) -> torch.Tensor:
        return self.layers(x * torch.as_tensor(weights, dtype=x.dtype) * factor)


@pytest.mark.parametrize("weights", [np.ones(6, dtype=np.float32), [1.0] * 6])
def test_numbers_in_arrays_and_lists_are_told_to_be_fixed(weights: object) -> None:
    captured = capture(Weighted(), (X, weights, 3.0))
    assert [note for note in captured.notes if "argument weights; give tensors" in note]
    torch.testing.assert_close(captured.module(X, weights, 3.0), captured.model(X, weights, 3.0))
    with pytest.raises(InvalidInputError, match="this graph was captured with"):
        captured.module(X, 2 * np.asarray(weights, dtype=np.float32), 3.0)


# Weights of one mode


class ReadsOutInEval(TwoLayers):
    """Has another readout in eval mode: a layer of its own, the readout with an addend, or the readout used twice."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__(width)
        self.how = how
        if how == "layer":
            self.other = nn.Linear(width, 3)
        if how in ("addend in train", "addend in eval"):
            self.addend = nn.Parameter(torch.zeros(3, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, weight = torch.relu(self.first(x)), self.last.weight
        if self.how == "layer" and not self.training:
            z: torch.Tensor = self.other(y)
            return z
        if self.how == ("addend in train" if self.training else "addend in eval"):
            weight = weight + self.addend
        z = nn.functional.linear(y, weight, self.last.bias)
        return z + nn.functional.linear(y, weight) if self.how == "twice" and not self.training else z


@pytest.mark.parametrize("how", ["layer", "addend in train", "addend in eval", "twice"])
def test_weights_of_one_mode_are_planned_and_folded(how: str) -> None:
    torch.manual_seed(0)
    result = abcfx.transform(ReadsOutInEval(32, how), X, base=ReadsOutInEval(8, how))
    assert result.plan["last.weight"].role == "readout"
    for training in (True, False):
        module = result.module.train(training)
        torch.testing.assert_close(result.fold()(X), module(X))
