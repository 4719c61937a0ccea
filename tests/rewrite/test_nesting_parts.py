"""Parts of a model that are hard to call from a graph: what they read, write or make besides their arguments."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models_blocks import METHODS, VOCABULARY, flat, inputs_of, logits_of, make
from torch import fx, nn

import abcfx
from abcfx.capture.options import CaptureMethod


def test_a_module_that_reads_more_than_its_arguments_is_part_of_its_caller() -> None:
    class Reader(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width, width)
            self.kept: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.kept[-1]

    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.reader, self.last = nn.Linear(8, width), Reader(width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            self.reader.kept[:] = [h * 2]
            out = self.last(self.reader(h))
            self.reader.kept.clear()
            return out

    x = torch.rand(4, 8)
    result = abcfx.transform(Model(64), x, base=Model(16))
    assert torch.equal(result.module(x), flat(result)(x)) and torch.allclose(result.fold()(x), result.module(x))
    assert any(note.startswith("reader cannot be called as a module") for note in result.notes)
    with pytest.raises(abcfx.AbcfxError, match="reader"):
        result.module.get_submodule("reader").register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_computes_nothing_is_called_or_refuses_hooks(method: CaptureMethod) -> None:
    def build(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.Identity(), nn.ReLU(), nn.Linear(width, 2))

    x, calls = torch.rand(4, 8), []
    module = abcfx.transform(build(64), x, base=build(16), capture=method).module
    try:
        module.get_submodule("1").register_forward_hook(lambda *_: calls.append(1))
    except abcfx.AbcfxError as error:
        assert str(error).startswith("1: a hook on this module would never run") and method == "export"
        calls.append(1)
    else:
        module(x)
    assert calls == [1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_statistics_of_batches_are_updated_once(method: CaptureMethod, parametrization: str) -> None:
    def build(width: int) -> nn.Sequential:
        inner = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), inner, nn.Flatten(), nn.Linear(width, 2))

    x = torch.rand(4, 3, 5, 5)
    result = abcfx.transform(build(32), x, base=build(16), capture=method, parametrization=parametrization)
    assert result.module is not flat(result)
    models = [result.module, copy.deepcopy(flat(result))]
    for model in models:
        model.train()(x)
    ours, theirs = (dict(model.named_buffers()) for model in models)
    for name in result.fold().state_dict():
        if name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    assert ours["1.num_batches_tracked"] == ours["2.1.num_batches_tracked"] == 1


def test_on_the_meta_device_callers_of_a_graph_are_graphs() -> None:
    """There the forward of the user's cannot be tried: a Llama's would hand other masks on than were captured."""
    inputs, _ = inputs_of("llama", 4)
    with torch.device("meta"):
        model, base = make("llama", 32), make("llama", 16)
    init = abcfx.InitLike(make("llama", 16), make("llama", 32))
    module = abcfx.transform(model, None, inputs, base=base, parametrization="ntk", init=init).module
    assert isinstance(module.get_submodule("model.layers.0"), fx.GraphModule)
    module.to_empty(device="cpu")
    assert logits_of(module(**inputs)).shape[-1] == VOCABULARY


@pytest.mark.parametrize("method", ["symbolic", "record"])
def test_a_part_that_assigns_a_buffer_is_called(method: CaptureMethod) -> None:
    class Average(nn.Module):
        mean: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mean = 0.5 * self.mean + 0.5 * x[0, :3].detach()
            return x - self.mean.sum()

    def build(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), Average(), nn.ReLU(), nn.Linear(width, 2))

    x = torch.rand(4, 8)
    result = abcfx.transform(build(64), x, base=build(16), capture=method)
    assert type(result.module.get_submodule("1")) is Average and not any("be called" in note for note in result.notes)
    models = [copy.deepcopy(result.module), copy.deepcopy(flat(result))]
    for model in models:
        model(x)
    means = [model.get_buffer("1.mean") for model in models]
    assert torch.equal(*means) and means[0].any() and not result.module.get_buffer("1.mean").any()


@pytest.mark.parametrize("method", METHODS)
def test_constants_and_devices_in_the_forward_of_a_part(method: CaptureMethod) -> None:
    class Part(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)  # its factor stands in this forward

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(x.shape[0], device=x.device)
            return torch.relu(F.linear(x * torch.tensor([[2.0]]), self.weight) + places[:, None])

    def build(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), Part(width), nn.Linear(width, 2))

    x = torch.rand(4, 8)
    result = abcfx.transform(build(64), x, base=build(16), capture=method, parametrization="ntk")
    assert not any("cannot be called" in note for note in result.notes)
    assert isinstance(result.module.get_submodule("1"), fx.GraphModule)
    assert torch.equal(result.module(x), flat(result)(x))
    copied = copy.deepcopy(result.module).double()
    assert copied(x.double()).dtype == torch.float64


def test_a_module_called_twice_is_one_module() -> None:
    class Twice(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, width), nn.Linear(width, 2)
            self.block = nn.Sequential(nn.Linear(width, width), nn.Tanh())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.block(self.block(self.first(x))))

    x = torch.rand(4, 8)
    result = abcfx.transform(Twice(64), x, base=Twice(16), parametrization="ntk")
    calls: list[int] = []
    result.module.get_submodule("block").register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(result.module(x), flat(result)(x)) and calls == [1, 1]
