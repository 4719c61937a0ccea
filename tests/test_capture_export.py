"""Capture by torch.export: exact in both modes, the model's own parameters, guards instead of truncated results."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from abcfx.capture import capture
from abcfx.capture.guards import _range_checks
from abcfx.errors import CaptureError, InvalidInputError
from abcfx.location import location


@dataclass
class Output:
    logits: torch.Tensor
    cache: object = None


pytree.register_dataclass(Output)


class Cache:
    def __init__(self, keys):
        self.layers = [keys]
        self.kind = "dynamic"


class Model(nn.Module):
    """Tied, with buffers written in forward, batch norm, dropout, no_grad, constants, a branch on a length."""

    def __init__(self, width=8, vocabulary=12):
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

    def forward(self, ids, mask=None, *, flag=True):
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
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def ids():
    return torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(1))


def run(module, *args, **kwargs):
    torch.manual_seed(3)
    return module(*args, **kwargs)


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_model_in_outputs_gradients_and_buffers(model, ids, training):
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
        assert left.grad is right.grad or torch.equal(left.grad, right.grad), name
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, emitted.get_buffer(name)), name


def test_names_parameters_and_ties_are_the_models_own(model, ids):
    emitted = capture(model, ids, method="export", verify=False).module
    assert list(emitted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in emitted.named_modules()] == [n for n, _ in model.named_modules()]
    for (name, parameter), (other, original) in zip(emitted.named_parameters(), model.named_parameters(), strict=True):
        assert name == other and parameter is original
    targets = {node.target for graph in emitted.graphs for node in graph.find_nodes(op="get_attr")}
    assert "emb.weight" in targets and "head.weight" not in targets
    copied = copy.deepcopy(emitted)
    assert copied.head.weight is copied.emb.weight is not model.emb.weight
    copied.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    assert torch.equal(copied.emb.weight, model.emb.weight + 1)


def test_nodes_know_shape_module_and_line(model, ids):
    graph = capture(model, ids, method="export", verify=False, modes=("train",)).module.graph
    (linear,) = graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert linear.name == "linear" and linear.meta["val"].shape[-1] == 12
    assert location(linear).startswith("head (test_capture_export.py:")
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "head"]


def test_model_is_untouched(model, ids):
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
def test_compiles_to_one_graph(model, ids, training):
    emitted = capture(model, ids, {"flag": False}, method="export").module.train(training)
    twin = copy.deepcopy(emitted)
    compiled = torch.compile(emitted, fullgraph=True, backend="eager")
    assert torch.equal(run(compiled, ids, flag=False).logits, run(twin, ids, flag=False).logits)


def test_moves_between_devices_and_dtypes(model, ids):
    emitted = copy.deepcopy(capture(model, ids, {"flag": False}, method="export").module)
    assert emitted.to(torch.float64)(ids, flag=False).logits.dtype == torch.float64
    emitted.plain = emitted.plain.to("meta")
    assert emitted.to("meta")(ids.to("meta"), flag=False).logits.device.type == "meta"


class LoopsOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x):
        state = torch.zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            state = torch.tanh(self.cell(x[:, step]) + state)
        return state


def test_other_length_than_captured_is_an_error_not_a_truncated_result():
    captured = capture(LoopsOverTime(), torch.rand(3, 5, 4), method="export")
    assert any("sizes this graph was captured for" in note and "x.size()[1] == 5" in note for note in captured.notes)
    assert captured.module(torch.rand(7, 5, 4)).shape == (7, 4)
    for length in (4, 6):
        with pytest.raises(InvalidInputError, match=r"x\.size\(\)\[1\] == 5"):
            captured.module(torch.rand(3, length, 4))


def test_range_checks_for_a_torch_without_guards_in_the_graph():
    class Wrapper(nn.Module):
        def forward(self, *flat):
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
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 100


class OwnGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return Doubles.apply(self.linear(x))


def test_custom_gradient_is_never_replaced():
    with pytest.raises(CaptureError, match=r"Doubles is a custom autograd\.Function"):
        capture(OwnGradient(), torch.rand(3, 4), method="export")
    assert torch.autograd.Function.apply.__func__.__qualname__ == "Function.apply"


class DependsOnExport(nn.Module):
    """Computes something else while it is exported, as a stand-in for what an export gets wrong."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * (1 if torch.compiler.is_exporting() else 2)


def test_wrong_graph_is_never_used():
    with pytest.raises(CaptureError, match=r"wrong in train mode .*output 0 differs by"):
        capture(DependsOnExport(), torch.rand(3, 4), method="export")
    assert capture(DependsOnExport(), torch.rand(3, 4), method="export", verify=False).method == "export"


class Detaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.linear(x.detach() if torch.compiler.is_exporting() else x) + x)


def test_wrong_gradient_is_found():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), Detaches()

        def forward(self, x):
            return self.second(self.first(x))

    with pytest.raises(CaptureError, match=r"gradient of first\.(weight|bias) differs"):
        capture(Stem(), torch.rand(3, 4), method="export")


class BranchesOnData(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x


def test_error_names_the_line_of_the_model():
    with pytest.raises(CaptureError, match=r"test_capture_export\.py:\d+: if x\.sum\(\) > 0:"):
        capture(BranchesOnData(), torch.rand(3, 4), method="export")


def test_one_mode_costs_one_export(model, ids):
    module = capture(model, ids, method="export", modes=("train",), verify=False).module
    assert module.eval_graph is None
    with pytest.raises(InvalidInputError, match="modes"):
        capture(model, ids, modes=("test",))


def test_meta_model_is_captured_without_weights(ids):
    with torch.device("meta"):
        model = Model()
    model.plain = torch.arange(8.0)
    for inputs in (ids, ids.to("meta")):
        captured = capture(model, inputs, method="export", modes=("eval",))
        assert any("not verified" in note for note in captured.notes)
        assert all(a is b and a.is_meta for a, b in zip(captured.module.parameters(), model.parameters(), strict=True))
    materialised = copy.deepcopy(captured.module).to_empty(device="cpu")
    materialised.load_state_dict(Model().state_dict())
    assert materialised(ids).logits.isfinite().all()


def test_dummy_inputs_of_the_model_are_used_and_noted(ids):
    class Dummy(Model):
        @property
        def dummy_inputs(self):
            return {"ids": ids}

    captured = capture(Dummy(), method="export", verify=False, modes=("train",))
    assert any("dummy_inputs" in note for note in captured.notes) and captured.kwargs.keys() == {"ids"}


def test_export_needs_inputs():
    with pytest.raises(InvalidInputError, match="needs example inputs"):
        capture(nn.Linear(2, 2), method="export")


def test_symbolic_graph_that_is_wrong_gives_way_to_an_export():
    class LooksAtTypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x * 2 if isinstance(x, torch.Tensor) else x)

    model, inputs = LooksAtTypes(), torch.rand(3, 4)
    with pytest.raises(CaptureError, match="wrong in train mode"):
        capture(model, inputs, method="symbolic")
    assert capture(model, inputs).method == "export"
