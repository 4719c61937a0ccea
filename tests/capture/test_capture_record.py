"""Capture by recording a run keeps layers of torch.nn and custom gradients whole, and guards its sizes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typed import given

from abcfx.capture import capture
from abcfx.capture.options import CaptureMethod
from abcfx.errors import CaptureError, InvalidInputError
from abcfx.support.location import location


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x * factor

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * 100 * ctx.factor, None  # type: ignore[attr-defined]


class Model(nn.Module):
    """A tied model with a custom gradient, no_grad, buffers replaced and written, dropout, sizes in arithmetic."""

    calls: torch.Tensor
    average: torch.Tensor

    def __init__(self, width: int = 8, vocabulary: int = 12) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocabulary, width)
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.emb.weight
        self.unused = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, object]:
        ids, mask = batch["ids"], batch.get("mask")
        rows, length = ids.shape
        with torch.no_grad():
            size = self.linear(self.emb.weight).abs().mean()
            self.average.mul_(0.9).add_(size)
        self.calls = self.calls + 1
        x = self.emb(ids) / (length + 1) ** 0.5 * size + torch.arange(self.gain.shape[0], device=ids.device)
        doubles: Callable[[torch.Tensor, float], torch.Tensor] = Doubles.apply
        x = doubles(self.linear(x) * self.gain, 2.0)
        if mask is not None:
            x = x * mask[..., None]
        x[:, 0] = 1.0
        x = self.norm(x.reshape(rows * length, -1)).view(rows, length, -1)
        x = F.dropout(x, 0.2, self.training)
        return {"logits": self.head(x), "sizes": (rows, length), "last": x[:, -1, : x.shape[-1] // 2]}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"ids": ids, "mask": torch.ones(3, 7)}


def run(module: Callable[..., Any], *args: object) -> Any:
    """Call a module after torch's generator was set to a seed."""
    torch.manual_seed(3)
    return module(*args)


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_model_in_outputs_gradients_and_buffers(
    model: nn.Module, batch: dict[str, torch.Tensor], training: bool
) -> None:
    captured = capture(model, (batch,), method="record")
    assert not captured.notes
    other = {"ids": torch.randint(0, 12, (5, 11)), "mask": torch.rand(5, 11)}
    twin, emitted = copy.deepcopy(model).train(training), captured.module.train(training)
    for _ in range(3):
        expected, got = run(twin, other), run(emitted, other)
    assert got["sizes"] == (5, 11) and torch.equal(expected["last"], got["last"])
    assert torch.equal(expected["logits"], got["logits"])
    expected["logits"].square().sum().backward()
    got["logits"].square().sum().backward()
    for (name, left), right in zip(twin.named_parameters(), emitted.parameters(), strict=True):
        assert left.grad is right.grad or torch.equal(given(left.grad), given(right.grad)), name
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, emitted.get_buffer(name)), name
    assert emitted.calls == 3 and not any(buffer.requires_grad for buffer in emitted.buffers())


def test_layers_are_kept_and_names_are_the_models_own(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    emitted = capture(model, (batch,), method="record", verify=False).module
    modules = {node.target for node in emitted.graph.find_nodes(op="call_module")}
    assert modules == {"emb", "linear", "norm", "head"}
    functions = {node.target for node in emitted.graph.nodes if node.op == "call_function"}
    assert {operator.mul, operator.setitem, F.dropout} <= functions
    assert list(emitted.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(emitted.parameters(), model.parameters(), strict=True))
    (head,) = emitted.graph.find_nodes(op="call_module", target="head")
    assert location(head).startswith("head (test_capture_record.py:") and head.meta["val"].shape[-1] == 12


def test_custom_gradient_is_kept(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    captured = capture(model, (batch,))
    assert captured.method == "record"
    assert any("Doubles" in str(node.target) for node in captured.module.graph.nodes)


def test_model_and_torch_are_untouched(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    call, apply, state = nn.Module.__call__, torch.autograd.Function.__dict__["apply"], torch.get_rng_state()
    capture(model, (batch,), method="record")
    assert nn.Module.__call__ is call and torch.autograd.Function.__dict__["apply"] is apply
    assert not torch.compiler.is_exporting() and not torch.compiler.is_compiling()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        assert module._parameters == before[name]["_parameters"] and module.__dict__.keys() == before[name].keys()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiles_and_copies(model: nn.Module, batch: dict[str, torch.Tensor], training: bool) -> None:
    emitted = capture(model, (batch,), method="record").module.train(training)
    twin = copy.deepcopy(emitted)
    compiled = torch.compile(copy.deepcopy(emitted), fullgraph=True, backend="eager")
    assert torch.equal(run(compiled, batch)["logits"], run(twin, batch)["logits"])
    del batch["mask"]
    with pytest.raises(InvalidInputError, match="batch"):
        emitted(batch)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.rnn(x)
        last = state[0] if isinstance(state, tuple) else state
        return self.out(y) + last.mean()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_one_node(kind: Callable[..., nn.RNNBase]) -> None:
    captured = capture(Recurrent(kind), torch.rand(3, 7, 6), method="record")
    assert len(captured.module.graph.find_nodes(op="call_module", target="rnn")) == 1 and not captured.notes


def test_transformer_is_entered_down_to_its_attention() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    inputs = (torch.rand(3, 5, 8), torch.rand(3, 6, 8))
    captured = capture(model, inputs, method="record", modes=("train",))
    kinds = {type(captured.module.get_submodule(n.target)) for n in captured.module.graph.find_nodes(op="call_module")}
    assert nn.MultiheadAttention in kinds and nn.Linear in kinds and nn.TransformerEncoderLayer not in kinds


class LoopsOverTime(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x[:, 0]
        for step in range(1, x.shape[1]):
            total = total * 0.5 + x[:, step]
        return total


def test_other_length_than_recorded_is_an_error_not_a_truncated_result() -> None:
    captured = capture(LoopsOverTime(), torch.rand(3, 5, 4), method="record")
    assert captured.notes == ("works only for length 5 of x (a Python loop or branch over sizes fixed it)",)
    assert captured.module(torch.rand(9, 5, 2)).shape == (9, 2)
    for length in (4, 6):
        with pytest.raises(InvalidInputError, match="works only for length 5 of x"):
            captured.module(torch.rand(3, length, 4))


class BranchesOnData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x


def test_branch_on_values_is_refused_unless_asked_for() -> None:
    model, inputs = BranchesOnData(), torch.rand(3, 4)
    with pytest.raises(CaptureError, match=r"test_capture_record\.py:\d+: if x\.sum\(\) > 0:"):
        capture(model, inputs, method="record")
    with pytest.raises(CaptureError, match=r"(?s)symbolic: .*export: .*record: "):
        capture(model, inputs)
    captured = capture(model, inputs, method="record_values")
    assert captured.method == "record" and any("branches on tensor values" in note for note in captured.notes)
    assert torch.equal(captured.module(inputs), inputs + 1)


def test_call_that_cannot_be_recorded_is_refused() -> None:
    class Maps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.vmap(lambda row: row * 2)(x)

    with pytest.raises(CaptureError, match="cannot be recorded"):
        capture(Maps(), torch.rand(3, 4), method="record")
    if hasattr(torch.optim, "Muon"):  # the export of 2.8, the oldest torch, fails an assertion of its own in vmap
        assert capture(Maps(), torch.rand(3, 4)).method == "export"


def test_meta_model_is_recorded_without_weights(batch: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        model = Model()
    captured = capture(model, (batch,), method="record")
    assert all(parameter.is_meta for parameter in captured.module.parameters())


@pytest.mark.parametrize("method", ["export", "record"])
def test_a_module_may_convert_itself_to_its_own_dtype_in_forward(method: CaptureMethod) -> None:
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.router = self.router.to(torch.float32)
            return self.router(x)

    to = nn.Module.to
    captured = capture(Converts(), torch.rand(3, 4), method=method, modes=("eval",))
    assert captured.module(torch.rand(5, 4)).shape == (5, 4) and nn.Module.to is to


class ChecksValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.abs().max() < 100
        y = self.linear(x)
        if y.isnan().any():
            raise ValueError("not a number")
        return y


def test_checks_of_values_are_passed() -> None:
    captured = capture(ChecksValues(), torch.rand(3, 4))
    assert captured.method == "record" and captured.module(torch.rand(5, 4)).shape == (5, 4)
    (note,) = captured.notes
    assert "checks of tensor values are not part of the graph" in note
    assert "assert x.abs().max() < 100" in note and "if y.isnan().any():" in note


class AsksWhetherItIsExported(nn.Module):
    """Combines torch's flags with others, as Hugging Face's `is_tracing` does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_tracing = torch.compiler.is_compiling()
        is_tracing |= isinstance(x, int)
        is_tracing = False | is_tracing & torch.compiler.is_exporting()
        return self.linear(x) if is_tracing else self.linear(x) + 0.0


def test_flags_of_torch_may_be_combined_with_others() -> None:
    assert capture(AsksWhetherItIsExported(), (torch.randn(3, 4),), method="record").method == "record"
