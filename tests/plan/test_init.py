"""Init keeps the model's own draw times a factor, redraws, or waits for weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from typed import given

import abcfx


class Net(nn.Module):
    """A language model whose weights are drawn by `scheme`, a function of (tensor, fan_in)."""

    def __init__(self, width: int, scheme: Any = None) -> None:
        super().__init__()
        self.tok = nn.Embedding(50, width, padding_idx=0)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.zero = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 50, bias=False)
        if not self.zero.weight.is_meta:
            nn.init.zeros_(self.zero.weight)
            if scheme is not None:
                scheme(self.fc.weight, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids)
        x = x + self.zero(torch.relu(self.fc(self.norm(x))))
        return self.head(x)


IDS = torch.arange(1, 13).reshape(3, 4)
SCHEMES = {
    "constant std": (lambda w, n: nn.init.normal_(w, std=0.02), 0.0),
    "fan-in": (lambda w, n: nn.init.normal_(w, std=n**-0.5), 0.5),
    "orthogonal": (lambda w, n: nn.init.orthogonal_(w), 0.5),
    "one over n": (lambda w, n: nn.init.normal_(w, std=1 / n), 1.0),
}


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_own_init_is_measured_snapped_and_brought_to_m_to_the_minus_b(scheme: str) -> None:
    torch.manual_seed(0)
    draw, exponent = SCHEMES[scheme]
    base, model = Net(32, draw), Net(128, draw)
    result = abcfx.transform(model, IDS, base=base)
    row = result.spec["fc.weight"]
    assert given(row["own_init"])["exponent"] == exponent and row["init_factor"] == 4.0 ** (exponent - 0.5)
    own, ours = model.fc.weight, result.module.get_submodule("fc").weight
    torch.testing.assert_close(ours, own * row["init_factor"])
    expected = float(base.fc.weight.detach().square().mean().sqrt()) * 4**-0.5
    assert row["std"] == pytest.approx(expected, rel=0.1)


def test_an_init_law_that_is_no_round_power_is_kept_as_measured() -> None:
    torch.manual_seed(0)
    draw = lambda w, n: nn.init.normal_(w, std=n**-0.37)  # noqa: E731
    row = abcfx.transform(Net(256, draw), IDS, base=Net(64, draw)).spec["fc.weight"]
    assert given(row["own_init"])["exponent"] == pytest.approx(0.37, abs=0.02)
    assert math.log(row["init_factor"]) / math.log(4) == pytest.approx(given(row["own_init"])["exponent"] - 0.5)


def test_zero_padding_and_constant_tensors_stay_what_they_are() -> None:
    for init in ("auto", "redraw"):
        result = abcfx.transform(Net(64), IDS, base=Net(16), init=init)
        weights = dict(result.module.named_parameters())
        assert not weights["zero.weight"].any() and not weights["tok.weight"][0].any()
        assert bool((weights["norm.weight"] == 1).all())
    absolute = dict(abcfx.transform(Net(64)).module.named_parameters())
    assert not absolute["tok.weight"][0].any() and not absolute["fc.bias"].any()


def test_keep_changes_no_weight_and_inserts_no_scale() -> None:
    model = Net(64)
    result = abcfx.transform(model, IDS, base=Net(16), init="keep")
    assert torch.equal(result.module(IDS), model(IDS))
    assert result.spec["fc.weight"]["lr"] == pytest.approx(1e-3 / 4)


def test_a_constant_on_the_init_touches_weights_only() -> None:
    spec = abcfx.transform(Net(64), IDS, base=Net(64), overrides=abcfx.Overrides(std=0.5)).spec
    assert spec["fc.weight"]["init_factor"] == 0.5 and spec["norm.weight"]["init_factor"] == 1.0


def _on_meta(width: int) -> Net:
    with torch.device("meta"):
        return Net(width)


def test_a_model_on_the_meta_device_is_planned_and_drawn_after_materialisation() -> None:
    torch.manual_seed(0)
    ids = IDS.to("meta")
    result = abcfx.transform(
        _on_meta(512), ids, base=_on_meta(128), init=abcfx.InitLike(lambda: Net(32), lambda: Net(64))
    )
    assert all(p.is_meta for p in result.module.parameters())
    module = result.init_weights(result.module.to_empty(device="cpu"))
    real = abcfx.transform(Net(512), IDS, base=Net(128))
    for name, row in real.spec.items():
        planned = result.spec[name]
        assert (planned["a"], planned["b"], planned["c"], planned["lr"]) == (row["a"], row["b"], row["c"], row["lr"])
        ours = float(module.get_parameter(name).detach().double().square().mean().sqrt())
        assert ours == pytest.approx(row["std"], rel=0.2, abs=1e-12), name
    assert torch.isfinite(module(IDS)).all()


def test_init_weights_says_what_it_does_not_know_and_writes_nothing() -> None:
    result = abcfx.transform(_on_meta(64), IDS.to("meta"), base=_on_meta(16))
    module = Net(64)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(abcfx.errors.InvalidInputError, match="InitLike"):
        result.init_weights(module)
    with pytest.raises(abcfx.errors.InvalidInputError, match="not a parameter of the plan"):
        abcfx.transform(Net(64)).init_weights(nn.Linear(2, 2))
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    tables = (nn.Embedding(2, 2), nn.Embedding(4, 4))
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"InitLike.*tok.weight"):
        abcfx.transform(_on_meta(64), IDS.to("meta"), base=_on_meta(16), init=abcfx.InitLike(*tables))


def test_an_unknown_op_may_be_reported_instead() -> None:
    class Odd(Net):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(torch.linalg.vander(self.fc(self.tok(ids)))[..., 1])

    with pytest.raises(abcfx.errors.UnknownOpError, match="vander"):
        abcfx.transform(Odd(64), IDS, base=Odd(16))
    result = abcfx.transform(Odd(64), IDS, base=Odd(16), capture=abcfx.Capture(unknown="report"))
    assert any("vander" in note and "test_init.py" in note for note in result.notes)
    assert result.spec["fc.weight"]["c"] == 1.0


def test_a_model_without_shapes_yet_is_refused_with_the_line_that_gives_it_some() -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"(?i)lazy"):
        abcfx.transform(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))
