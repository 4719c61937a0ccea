"""Weights are seen however forward reaches them, and those that are none of the model's are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import TwoLayers
from torch import nn

import abcfx
from abcfx.capture import capture
from abcfx.errors import CaptureError

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))


class ReadsRaw(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = dict(self.named_parameters())
        y = torch.relu(nn.functional.linear(x, held["first.weight"] * 1.0, held["first.bias"]))
        weight, bias = self.last._parameters["weight"], self.last._parameters["bias"]
        assert weight is not None and bias is not None
        return y @ weight.T + bias


class ReadsList(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, b, v, c = [each.clone() for each in self.parameters()]
        return nn.functional.linear(torch.relu(nn.functional.linear(x, w, b)), 1.0 * v, c)


class HoldsFunctions(TwoLayers):
    """Reaches its layers through a lambda, as minGPT does, a partial, and a default argument."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        first, last = self.first, self.last
        self.apply_first: Callable[[torch.Tensor], torch.Tensor] = lambda x: torch.relu(first(x))

        def apply_last(x: torch.Tensor, layer: nn.Linear = last) -> torch.Tensor:
            y: torch.Tensor = layer(x)
            return y

        self.table = {"last": [apply_last]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table["last"][0](self.apply_first(x))


class HasHook(TwoLayers):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.side = nn.Linear(width, width)
        self.first.register_forward_hook(lambda module, args, output: output + self.side(output))


@pytest.mark.parametrize(
    ("kind", "given"),
    [(ReadsRaw, True), (ReadsRaw, False), (ReadsList, True), (HoldsFunctions, True), (HasHook, True), (HasHook, False)],
)
def test_parameters_reached_in_other_ways_are_planned_and_trained(kind: type[TwoLayers], given: bool) -> None:
    model = kind(32)
    result = abcfx.transform(model, X if given else None, base=kind(8))
    roles = {name: row.role for name, row in result.plan.items() if name.endswith("weight")}
    expected = {"first.weight": "embedding", "last.weight": "readout"}
    assert roles == expected | ({"side.weight": "hidden"} if kind is HasHook else {})
    result.module(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in result.module.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


class Unregistered(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.more = [nn.Linear(6, 6)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.more[0](x))


def test_a_weight_that_is_none_of_the_models_is_refused_unless_it_is_frozen() -> None:
    model = Unregistered()
    with pytest.raises(CaptureError, match=r"none of the model's own.*(?s:.*)To fix: register it"):
        capture(model, X)
    model.more[0].requires_grad_(False)
    torch.testing.assert_close(capture(model, X).module(X), model(X))


class AsksForGradients(TwoLayers):
    """Makes a tensor of its input require gradients, as speech models of Hugging Face do for checkpoints."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[:, None]
        if self.training:
            y.requires_grad = True
        return self.layers(y[:, 0])


def test_a_tensor_that_forward_makes_to_require_gradients_is_no_weight() -> None:
    model = AsksForGradients()
    torch.testing.assert_close(capture(model, X, method="export").module(X), model(X))


class OwnCheckpoint(torch.autograd.Function):
    """A checkpoint as many repositories write it."""

    @staticmethod
    def forward(ctx, run, x, *parameters):  # type: ignore[no-untyped-def]
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.run(x)
        return (None, *torch.autograd.grad(y, (x, *ctx.parameters), gradient))


class Checkpoints(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply: Callable[..., torch.Tensor] = OwnCheckpoint.apply
        return apply(self.last, torch.relu(self.first(x)), *self.last.parameters())


@pytest.mark.parametrize("method", ["export", "record"])
def test_a_hand_written_checkpoint_is_entered(method: abcfx.capture.options.CaptureMethod) -> None:
    model = Checkpoints()
    module = capture(model, X, method=method).module
    torch.testing.assert_close(module(X), model(X))


class HoldsSparse(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", torch.eye(6).to_sparse())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.sparse.mm(self.mixing, x.t()).t())


def test_sparse_buffers_are_compared() -> None:
    captured = capture(HoldsSparse(), X)
    torch.testing.assert_close(captured.module(X), captured.model(X))


class Prefixed(nn.Module):
    """Learned tokens in front of the input, repeated for each sample of the batch."""

    def __init__(self, count: Callable[[torch.Tensor], int]) -> None:
        super().__init__()
        self.first, self.tokens = nn.Linear(8, 16), nn.Parameter(torch.randn(4, 16))
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return torch.cat([self.tokens.expand(self.count(x), -1, -1), x], 1)


class PrefixedByLen(Prefixed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_len_of_a_tensor_leaves_the_batch_open(batch: int) -> None:
    model = PrefixedByLen(lambda x: 0)
    module = capture(model, torch.randn(batch, 3, 8)).module
    x = torch.randn(7, 3, 8)
    torch.testing.assert_close(module(x), model(x))
    assert "len" not in globals()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_that_the_model_makes_a_number_is_that_of_the_examples(batch: int) -> None:
    model = Prefixed(lambda x: int(x.shape[0]))
    x = torch.randn(batch, 3, 8)
    module = capture(model, x).module
    torch.testing.assert_close(module(x), model(x))
