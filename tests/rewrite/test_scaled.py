"""`abcfx.scaled` changes nothing in the model as written, and becomes a scale node in the transformed one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typed import scales_in

import abcfx
from abcfx.capture.options import CaptureMethod

X = torch.randn(3, 6)


class Model(nn.Module):
    def __init__(self, width: int, a: float = 0.5, as_module: bool = True) -> None:
        super().__init__()
        self.emb, self.head = nn.Linear(6, width, bias=False), nn.Linear(width, 3)
        fc = nn.Linear(width, width, bias=False)
        self.fc = abcfx.scaled(fc, a) if as_module else fc
        self.a, self.as_module = a, as_module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.emb(x))
        h = self.fc(h) if self.as_module else abcfx.scaled(lambda y: self.fc(y), a=self.a)(h)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("as_module", [True, False])
def test_without_transform_nothing_is_multiplied(as_module: bool) -> None:
    torch.manual_seed(0)
    model = Model(8, as_module=as_module)
    fc = model.get_submodule("fc.module" if as_module else "fc")
    expected = model.head(torch.tanh(fc(torch.tanh(model.emb(X)))))
    assert torch.equal(model(X), expected)
    torch.autograd.gradcheck(lambda x: abcfx.scaled(torch.sin, 0.5)(x), X.double().requires_grad_())


@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.parametrize("capture", ["symbolic", "export", "record"])
def test_scaled_becomes_a_scale_node_of_the_transformed_model(capture: CaptureMethod, as_module: bool) -> None:
    torch.manual_seed(0)
    model = Model(32, as_module=as_module)
    result = abcfx.transform(model, X, base=Model(8, as_module=as_module), capture=capture)
    (node,) = scales_in(result.module, "abcfx.scaled")
    assert node.args[1] == 0.5
    name = "fc.module.weight" if as_module else "fc.weight"
    plain = abcfx.transform(Model(32, 0.0, as_module), X, base=Model(8, 0.0, as_module), capture=capture)
    # the LP makes up for what the multiplier takes away
    assert result.spec[name]["c"] == plain.spec[name]["c"] - 0.5
    torch.testing.assert_close(torch.compile(result.module, backend="eager")(X), result.module(X))


def test_scaled_is_refused_where_no_scale_node_can_stand() -> None:
    refused = pytest.raises(abcfx.errors.InvalidInputError, match=r"abcfx\.scaled at fc.*\n.*base=")
    with refused:
        abcfx.transform(Model(32), X)
    with refused:
        abcfx.transform(Model(32), X, base=Model(8), apply="inplace")
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"abcfx\.scaled at .* cannot be put into weights"):
        abcfx.transform(Model(32), X, base=Model(8)).fold()
