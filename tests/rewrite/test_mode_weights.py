"""Modules that fold weights when they go into eval mode: right with absorbed multipliers, refused with others."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.capture import mode_weights
from abcfx.capture.mode_weights import folding_modules
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ApplyMode

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Merging(nn.Linear):
    """A low-rank addition that is merged into the weight in eval mode."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            with torch.no_grad():
                self.weight += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        super().train(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.down.T @ self.up.T


class Stored(nn.Module):
    """A sum of two weights that eval mode keeps, in a buffer or in an attribute that is none."""

    def __init__(self, inputs: int, outputs: int, kept: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(inputs, outputs, bias=False) for _ in range(2))
        self.sum, self.kept = kept(torch.zeros(outputs, inputs)), kept

    def train(self, mode: bool = True) -> Stored:
        if not mode:
            self.sum = self.kept((self.left.weight + self.right.weight).detach())
        super().train(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x) if self.training else F.linear(x, self.sum)


class Net(nn.Module):
    def __init__(self, width: int, layer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, width)
        self.head: nn.Module = (
            Merging(width, 3)
            if layer == "merging"
            else Stored(width, 3, nn.Buffer if layer == "buffer" else torch.clone)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.stem(x)))
        return out


class Whole(Merging):
    """The same as the whole model."""

    def __init__(self, width: int, layer: str) -> None:
        super().__init__(4, width)


def transformed(layer: str, apply: ApplyMode, net: type[nn.Module] = Net) -> abcfx.Transformed:
    return abcfx.transform(net(32, layer), X, base=net(8, layer), optimizer="adamw", apply=apply)


@pytest.mark.parametrize("layer", ["merging", "buffer", "attribute"])
def test_multipliers_in_the_graph_are_refused(layer: str) -> None:
    with pytest.raises(InvalidInputError, match=r"head .*folds weights together(?s:.*)To fix: apply='absorb'"):
        transformed(layer, "insert")


@pytest.mark.parametrize("layer", ["merging", "buffer", "attribute"])
@pytest.mark.parametrize("apply", ["absorb", "inplace"])
def test_absorbed_multipliers_are_right_in_both_modes(layer: str, apply: ApplyMode) -> None:
    result = transformed(layer, apply)
    optimizer = torch.optim.AdamW(result.param_groups)
    for _ in range(2):
        result.module.train()(X).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(result.module.train()(X), result.module.eval()(X))


def test_without_multipliers_nothing_is_refused() -> None:
    model = Net(8, "merging")
    before = copy.deepcopy(model.state_dict())
    result = abcfx.transform(model, X, base=Net(8, "merging"))
    torch.testing.assert_close(result.module.eval()(X), model.eval()(X))
    model.train()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize("apply", ["absorb", "inplace"])
def test_a_graph_of_a_model_that_folds_by_itself_is_refused(apply: ApplyMode) -> None:
    with pytest.raises(InvalidInputError, match=r"the model \(Whole\)(?s:.*)To fix: apply='inplace'"):
        transformed("", "insert", Whole)
    result = transformed("", apply, Whole)
    torch.testing.assert_close(result.module.train()(X), result.module.eval()(X))


def test_folded_models_and_parameters_of_one_mode_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"given in eval mode(?s:.*)To fix: model.train\(\)"):
        abcfx.transform(Net(32, "merging").eval(), X, base=Net(8, "merging"))
    model = Net(8, "merging")
    model.head = Stored(8, 3, lambda tensor: nn.Parameter(tensor, requires_grad=False))
    model.head.sum = None  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match=r"parameter head.sum in one of train and eval mode only"):
        abcfx.transform(model, X)


def test_tensors_that_are_not_made_of_weights_do_not_count() -> None:
    class Cached(nn.Linear):
        cache: torch.Tensor | None = None

        def train(self, mode: bool = True) -> Cached:
            self.cache = None if mode else torch.zeros(3)
            super().train(mode)
            return self

    def net(width: int) -> nn.Sequential:
        return nn.Sequential(Cached(4, width), nn.Tanh(), Cached(width, 3))

    assert abcfx.transform(net(32), X, base=net(8)).plan["2.weight"].multiplier["2"] == 0.5


def test_no_weight_is_copied_where_train_and_eval_only_change_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flagged(nn.Linear):
        calls = 0

        def train(self, mode: bool = True) -> Flagged:
            self.calls += 1
            super().train(mode)
            return self

    class UpToDate(Stored):
        """Folds its weights again only if they have changed since."""

        seen: object = None

        def train(self, mode: bool = True) -> UpToDate:
            seen = self.left.weight._version
            super().train(mode or self.seen == seen)
            self.seen = seen
            return self

    def net(layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), layer)

    assert [each.path for each in folding_modules(net(UpToDate(8, 3, nn.Buffer)))] == ["1"]
    monkeypatch.setattr(mode_weights, "_copied", lambda tensors: pytest.fail("weights were copied"))
    model = net(Flagged(8, 3))
    assert not folding_modules(model)
    assert isinstance(model[1], Flagged) and model[1].calls == 0


def test_norms_that_train_keeps_frozen_stay_frozen() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].running_mean += 1  # type: ignore[assignment, operator]
    module = abcfx.transform(model, X, base=copy.deepcopy(model)).module
    for each in (module, copy.deepcopy(module)):
        torch.testing.assert_close(each.train()(X), model.train()(X))
        torch.testing.assert_close(each.eval()(X), model.eval()(X))
