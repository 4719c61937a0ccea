"""Capture by torch.export is exact in both modes, keeps the model's parameters, and guards its sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from typed import given

from abcfx.capture import capture
from abcfx.capture.capture_notes import hook_notes
from abcfx.capture.copying import copied
from abcfx.capture.driver import Mode
from abcfx.capture.guards import _range_checks
from abcfx.errors import CaptureError, InvalidInputError
from abcfx.support.location import location


@dataclass
class Output:
    logits: torch.Tensor
    cache: Cache | None = None


pytree.register_dataclass(Output)


class Cache:
    def __init__(self, keys: torch.Tensor) -> None:
        self.layers = [keys]
        self.kind = "dynamic"


class Model(nn.Module):
    """A tied model with buffers written in forward, batch norm, dropout, no_grad, constants, a branch on a length."""

    calls: torch.Tensor
    average: torch.Tensor

    def __init__(self, width: int = 8, vocabulary: int = 12) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocabulary, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.emb.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()), persistent=False)
        self.plain = torch.arange(float(width))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, flag: bool = True) -> Output:
        if ids.shape[1] > 64:
            raise ValueError("too long")
        with torch.no_grad():
            size = self.emb.weight.abs().mean()
            self.average.mul_(0.9).add_(size)
        x = self.emb(ids) * size + self.plain + torch.tensor([1.0]) + torch.arange(8, device=ids.device)
        self.calls += 1
        if mask is not None:
            x = x * mask[..., None]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return Output(self.head(self.drop(x)), Cache(x) if flag else None)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(1))


def run(module: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call a module after torch's generator was set to a seed."""
    torch.manual_seed(3)
    return module(*args, **kwargs)


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_model_in_outputs_gradients_and_buffers(model: Model, ids: torch.Tensor, training: bool) -> None:
    captured = capture(model, ids, {"mask": torch.ones(3, 7)}, method="export")
    other = torch.randint(0, 12, (5, 11))
    call = {"ids": other, "mask": torch.rand(5, 11)}
    twin, emitted = copy.deepcopy(model).train(training), captured.module.train(training)
    for _ in range(3):
        expected, got = run(twin, **call), run(emitted, **call)
    assert type(got) is Output and type(got.cache) is Cache and got.cache.kind == "dynamic"
    assert torch.equal(expected.logits, got.logits) and torch.equal(expected.cache.layers[0], got.cache.layers[0])
    expected.logits.square().sum().backward()
    got.logits.square().sum().backward()
    for (name, left), right in zip(twin.named_parameters(), emitted.parameters(), strict=True):
        assert left.grad is right.grad or torch.equal(given(left.grad), given(right.grad)), name
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, emitted.get_buffer(name)), name


def test_names_parameters_and_ties_are_the_models_own(model: Model, ids: torch.Tensor) -> None:
    emitted = capture(model, ids, method="export", verify=False).module
    assert list(emitted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in emitted.named_modules()] == [n for n, _ in model.named_modules()]
    for (name, parameter), (other, original) in zip(emitted.named_parameters(), model.named_parameters(), strict=True):
        assert name == other and parameter is original
    targets = {node.target for graph in emitted.graphs for node in graph.find_nodes(op="get_attr")}
    assert "emb.weight" in targets and "head.weight" not in targets
    copied = copy.deepcopy(emitted)
    assert copied.get_parameter("head.weight") is copied.get_parameter("emb.weight") is not model.emb.weight
    copied.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    assert torch.equal(copied.get_parameter("emb.weight"), model.emb.weight + 1)


def test_nodes_know_shape_module_and_line(model: Model, ids: torch.Tensor) -> None:
    graph = capture(model, ids, method="export", verify=False, modes=("train",)).module.graph
    (linear,) = graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert linear.name == "linear" and linear.meta["val"].shape[-1] == 12
    assert location(linear).startswith("head (test_capture_export.py:")
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "head"]


def test_model_is_untouched(model: Model, ids: torch.Tensor) -> None:
    model.train()
    model.norm.eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradient = model.emb.weight.grad = torch.ones_like(model.emb.weight)
    state = torch.get_rng_state()
    capture(model, ids, method="export")
    assert torch.equal(torch.get_rng_state(), state) and model.emb.weight.grad is gradient
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    assert all(torch.equal(value, model.get_buffer(name)) for name, value in buffers.items())
    assert not any(buffer.requires_grad for buffer in model.buffers())


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(model: Model, ids: torch.Tensor, training: bool) -> None:
    emitted = capture(model, ids, {"flag": False}, method="export").module.train(training)
    twin = copy.deepcopy(emitted)
    compiled = torch.compile(emitted, fullgraph=True, backend="eager")
    assert torch.equal(run(compiled, ids, flag=False).logits, run(twin, ids, flag=False).logits)


def test_moves_between_devices_and_dtypes(model: Model, ids: torch.Tensor) -> None:
    emitted = copy.deepcopy(capture(model, ids, {"flag": False}, method="export").module)
    assert emitted.to(torch.float64)(ids, flag=False).logits.dtype == torch.float64
    emitted.plain = emitted.plain.to("meta")
    assert emitted.to("meta")(ids.to("meta"), flag=False).logits.device.type == "meta"


class LoopsOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            state = torch.tanh(self.cell(x[:, step]) + state)
        return state


def test_graph_that_names_its_dtype_is_not_converted_to_a_smaller_one() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dtype = x.dtype
            return self.linear(x.float().square().to(dtype))

    module = capture(Casts(), torch.rand(3, 4), method="export").module
    with pytest.raises(InvalidInputError, match=r"abcfx\.transform\(model\.to\(torch\.bfloat16\)"):
        module.to(torch.bfloat16)
    assert module.get_parameter("linear.weight").dtype == torch.float32
    half = capture(Casts().to(torch.bfloat16), torch.rand(3, 4, dtype=torch.bfloat16), method="export").module
    assert half(torch.rand(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_other_length_than_captured_is_an_error_not_a_truncated_result() -> None:
    captured = capture(LoopsOverTime(), torch.rand(3, 5, 4), method="export")
    assert captured.notes == ("works only for length 5 of x (a Python loop or branch over sizes fixed it)",)
    assert captured.module(torch.rand(7, 5, 4)).shape == (7, 4)
    for length in (4, 6):
        with pytest.raises(InvalidInputError, match=r"works only for length 5 of x"):
            captured.module(torch.rand(3, length, 4))


def test_range_checks_for_a_torch_without_guards_in_the_graph() -> None:
    class Wrapper(nn.Module):
        def forward(self, *flat: torch.Tensor) -> torch.Tensor:
            return flat[0][:, :4] + flat[1]

    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    inputs = (torch.rand(3, 6), torch.rand(3, 4))
    program = torch.export.export(Wrapper(), inputs, dynamic_shapes=((free, free),))
    check = _range_checks(program.module(), program)
    check(torch.rand(5, 9), torch.rand(5, 4))
    for wrong in ((torch.rand(5, 6), torch.rand(4, 4)), (torch.rand(5, 6), torch.rand(5, 3))):
        with pytest.raises(AssertionError, match=r"flat_1\.size"):
            check(*wrong)


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 100


class OwnGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubles: Callable[[torch.Tensor], torch.Tensor] = Doubles.apply
        return doubles(self.linear(x))


def test_custom_gradient_is_never_replaced() -> None:
    before = vars(torch.autograd.Function)["apply"]
    with pytest.raises(CaptureError, match=r"Doubles is a custom autograd\.Function"):
        capture(OwnGradient(), torch.rand(3, 4), method="export")
    assert vars(torch.autograd.Function)["apply"] is before


class BranchesOnData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x


def test_error_names_the_line_of_the_model() -> None:
    with pytest.raises(CaptureError, match=r"test_capture_export\.py:\d+: if x\.sum\(\) > 0:"):
        capture(BranchesOnData(), torch.rand(3, 4), method="export")


def test_one_mode_costs_one_export(model: Model, ids: torch.Tensor) -> None:
    module = capture(model, ids, method="export", modes=("train",), verify=False).module
    assert module.eval_graph is None
    with pytest.raises(InvalidInputError, match="modes"):
        capture(model, ids, modes=(cast("Mode", "test"),))


def test_meta_model_is_captured_without_weights(ids: torch.Tensor) -> None:
    with torch.device("meta"):
        model = Model()
    model.plain = torch.arange(8.0)
    for inputs in (ids, ids.to("meta")):
        captured = capture(model, inputs, method="export", modes=("eval",))
        assert any("not verified" in note for note in captured.notes)
        assert all(a is b and a.is_meta for a, b in zip(captured.module.parameters(), model.parameters(), strict=True))
    materialised = copy.deepcopy(captured.module).to_empty(device="cpu")
    materialised.load_state_dict(Model().state_dict())
    # No state_dict holds the constant that an export lifts out of forward: `to_empty` leaves it its value.
    real = capture(Model(), ids, method="export", modes=("eval",)).module.get_buffer("_lifted_tensor_0")
    assert torch.equal(materialised.get_buffer("_lifted_tensor_0"), real)
    assert materialised(ids).logits.isfinite().all()


def test_dummy_inputs_of_the_model_are_used_and_noted(ids: torch.Tensor) -> None:
    class Dummy(Model):
        @property
        def dummy_inputs(self) -> dict[str, torch.Tensor]:
            return {"ids": ids}

    captured = capture(Dummy(), method="export", verify=False, modes=("train",))
    assert any("dummy_inputs" in note for note in captured.notes) and given(captured.kwargs).keys() == {"ids"}


def test_export_needs_inputs() -> None:
    with pytest.raises(InvalidInputError, match="needs example inputs"):
        capture(nn.Linear(2, 2), method="export")


def test_symbolic_graph_that_is_wrong_gives_way_to_an_export() -> None:
    class LooksAtTypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x * 2 if isinstance(x, torch.Tensor) else x)

    model, inputs = LooksAtTypes(), torch.rand(3, 4)
    with pytest.raises(CaptureError, match="wrong in train mode"):
        capture(model, inputs, method="symbolic")
    assert capture(model, inputs).method == "export"


def test_inputs_that_the_model_itself_refuses_say_so_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        CaptureError, match="Wrong does not run on its example inputs: RuntimeError: mat1 and mat2"
    ) as e:
        capture(type("Wrong", (nn.Sequential,), {})(LoopsOverTime(), nn.Linear(5, 5)), torch.rand(3, 5, 7))
    assert "test_capture_export.py" in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_verification_keeps_offsets_valid() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(30, 4, mode="sum"), nn.Linear(4, 2)

        def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.head(self.bag(ids, offsets))

    for offsets in ([0, 2, 4, 6], [0, 3, 3, 5, 6, 6, 6, 7]):
        captured = capture(Bags(), (torch.randint(0, 30, (8,)), torch.tensor(offsets)), method="export")
        assert captured.notes == ()


def test_inputs_that_mean_nothing_to_the_model_are_not_compared() -> None:
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            return self.linear(x) / (count[0] - count[1]).sqrt()

    captured = capture(Divides(), (torch.rand(2, 4), torch.tensor([3.0, 1.0])), method="export")
    assert captured.method == "export"


def test_hooks_and_checkpoints_that_are_left_out_are_noted() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.linear, x, use_reentrant=False)

    model, seen = nn.Sequential(Block(), nn.ReLU()), []
    for module in model:
        module.register_forward_hook(lambda module, args, out: seen.append(type(module)))
    model[0].register_full_backward_hook(lambda module, given, got: None)
    captured = capture(model, torch.rand(3, 4), method="record")
    notes = "\n".join((*captured.notes, *hook_notes(model, captured.opened)))
    assert "activation checkpointing" in notes
    assert "forward hooks on 0 ran once" in notes and "backward hooks on 0 are not part" in notes


def test_model_without_weights_yet_is_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r"0 \(LazyLinear\) has no weights yet.*\n  To fix: call the model once"
    ):
        capture(nn.Sequential(nn.LazyLinear(4)), torch.rand(2, 3))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(
        InvalidInputError, match=r"0\.weight is .*\n  To fix: torch\.nn\.utils\.parametrizations\.weight_"
    ):
        copied(model)
