"""Methods and attributes of a model's own class that its graph does not have say where they are."""

from __future__ import annotations

import copy
import pickle
from typing import get_args

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.errors import AbcfxError, LeftBehindError


class Coder(nn.Module):
    """A model with more than a forward."""

    limit = 3

    def __init__(self, width: int = 8) -> None:
        """Make an encoder and a head."""
        super().__init__()
        self.inner, self.head, self.options = nn.Linear(4, width), nn.Linear(width, 2), {"a": 1}

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden features."""
        return torch.relu(self.inner(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.encode(x))


X = torch.ones(3, 4)


@pytest.mark.parametrize("method", [each for each in get_args(CaptureMethod) if each != "record_values"])
def test_methods_of_the_class_are_named(method: CaptureMethod) -> None:
    """The error of `result.module.encode` names the class and both ways to it, also on copies."""
    result = abcfx.transform(Coder(), X, base=Coder(4), capture=method)
    module = result.module
    copies = [copy.copy(module), copy.deepcopy(module)]
    if method in ("auto", "symbolic"):  # graphs with guards on sizes cannot be pickled
        copies.append(pickle.loads(pickle.dumps(module)))
    for each in (module, *copies):
        for name in ("encode", "limit", "options"):
            assert not hasattr(each, name)
            with pytest.raises(LeftBehindError, match=rf"'{name}' is an attribute of Coder.*\n.*apply='inplace'.*fold"):
                getattr(each, name)
        with pytest.raises(AttributeError, match="no attribute 'nothing'") as raised:
            _ = each.nothing
        assert not isinstance(raised.value, AbcfxError)
    assert dict(module.named_parameters())["inner.weight"].shape == (8, 4)


def test_the_ways_that_the_message_names() -> None:
    """After apply="inplace" the model keeps its methods, and a folded model has them."""
    model = Coder()
    placed = abcfx.transform(model, X, base=Coder(4), apply="inplace").module
    assert placed is model and placed.encode(X).shape == (3, 8)
    folded = abcfx.transform(Coder(), X, base=Coder(4)).fold()
    assert isinstance(folded, Coder) and folded.encode(X).shape == (3, 8)
