"""By-products that a model returns beside its outputs bind no rate, are named in the report, and can be asked for."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.dag.output_loss import OutputLoss
from abcfx.errors import InvalidInputError


class Returns(nn.Module):
    """A small model that returns its logits alone, or with something beside them."""

    def __init__(self, width: int, beside: str = "") -> None:
        super().__init__()
        self.emb, self.hidden, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, 8), nn.Linear(width, 8)
        self.gate, self.mean, self.back = nn.Linear(width, 3), nn.Linear(width, 4), nn.Linear(4, width)
        self.beside = beside

    def forward(self, x: Tensor) -> object:
        h = F.relu(self.hidden(self.emb(x)))
        y, state = self.lstm(h)
        q, k, v = self.q(y).unflatten(-1, (-1, 8)).transpose(1, 2), self.k(y)[:, None], self.v(y)[:, None]
        maps = (q @ k.mT / 8**0.5).softmax(-1)
        y = y + (maps @ v).transpose(1, 2).flatten(2)
        gate = self.gate(y)
        weights = gate.softmax(-1)
        y = y * weights[..., :1]
        mean = self.mean(y)
        logits = self.head(F.relu(self.back(mean + torch.ones_like(mean))))
        named = {"logits": logits, "hidden_states": (h, y), "router_logits": gate, "loss": logits.square().mean()}
        return {
            "": logits,
            "state": (logits, state),
            "features": {"scores": logits, "features": h},
            "hidden": (logits, h),
            "cache": (logits, ((k, v),)),
            "maps": [logits, maps],
            "gate": (logits, gate, weights),
            "named": named,
            "mean": (logits, mean),
        }[self.beside]


X = torch.randn(2, 5, 6)
NAMES = (
    "emb.weight",
    "hidden.weight",
    "lstm.weight_hh_l0",
    "k.weight",
    "v.weight",
    "q.weight",
    "gate.weight",
    "head.weight",
)


def _transformed(
    beside: str, capture: abcfx.Capture | CaptureMethod = "symbolic", optimizer: str = "adam"
) -> abcfx.Transformed:
    return abcfx.transform(
        Returns(64, beside), X, base=Returns(16, beside), optimizer=optimizer, lr=0.1, capture=capture, apply="off"
    )


@cache
def _alone(optimizer: str) -> dict[str, tuple[object, ...]]:
    """Return the exponents of the model that returns its logits alone."""
    return _exponents(_transformed("", optimizer=optimizer))


def _exponents(result: abcfx.Transformed) -> dict[str, tuple[object, ...]]:
    return {name: tuple(result.spec[name][key] for key in ("role", "a", "b", "c")) for name in NAMES}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("beside", "left_out"),
    [
        ("state", "1 (2 tensors)"),
        ("features", "features"),
        ("hidden", "1"),
        ("cache", "1 (2 tensors)"),
        ("maps", "1"),
        ("gate", "1, 2"),
        ("named", "hidden_states (2 tensors), router_logits, loss"),
    ],
)
def test_by_products_change_no_exponent_and_are_named(beside: str, left_out: str, optimizer: str) -> None:
    result = _transformed(beside, optimizer=optimizer)
    assert _exponents(result) == _alone(optimizer)
    (note,) = [note for note in result.notes if note.startswith("outputs")]
    assert f"not taken for outputs: {left_out}." in note and "Capture(outputs=" in note


def test_a_narrow_layer_of_its_own_is_an_output_though_the_model_uses_it() -> None:
    result = _transformed("mean")
    assert result.spec["mean.weight"]["role"] == "readout"
    assert not [note for note in result.notes if note.startswith("outputs")]


@pytest.mark.parametrize("method", ["symbolic", "export", "record"])
def test_outputs_are_chosen_by_path_and_pattern(method: CaptureMethod) -> None:
    chosen = abcfx.Capture(method=method, outputs=("log*", "hidden_states.1"))
    result = _transformed("named", chosen)
    assert len(result.outcome.dag.outputs) == 2 and not [note for note in result.notes if note.startswith("outputs")]
    assert len(_transformed("named", abcfx.Capture(method=method, outputs="hidden_states")).outcome.dag.outputs) == 2


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'logit'.*\n.*'logits', 'hidden_states.0'"):
        _transformed("named", abcfx.Capture(outputs="logit"))
    with pytest.raises(InvalidInputError, match="expected a path"):
        abcfx.Capture(outputs=("",))


class Projects(nn.Module):
    """A model whose projection is used by the loss that it returns, and by nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.hidden, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.hidden(self.emb(x))
        return {"embedding": h, "loss": self.head(F.relu(h)).square().mean()}


def test_a_loss_stays_an_output_if_a_layer_is_used_by_nothing_else() -> None:
    spec = abcfx.transform(Projects(64), X, base=Projects(16), optimizer="adam", lr=0.1).spec
    assert spec["head.weight"]["role"] == "readout" and spec["hidden.weight"]["c"] == 1.0


class Attention(nn.Module):
    """Attention with four heads, whose size grows with the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        result: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return result


class ReturnsByMode(nn.Module):
    """A model with an auxiliary head behind attention, which returns other things in eval mode than in train mode."""

    def __init__(self, width: int, evaluated: str) -> None:
        super().__init__()
        self.emb, self.head, self.aux = nn.Linear(6, width), nn.Linear(width, 3), nn.Linear(width, 3)
        self.first, self.second, self.evaluated = Attention(width), Attention(width), evaluated

    def forward(self, x: Tensor) -> object:
        h = self.emb(x)
        h = h + self.first(h)
        logits, aux = self.head(h), self.aux(h + self.second(h))
        if self.training:
            return {"logits": logits, "aux": aux}
        return {"logits": {"logits": logits}, "sum": logits + aux, "tuple": (logits, aux, h)}[self.evaluated]


@pytest.mark.parametrize("evaluated", ["logits", "sum", "tuple"])
@pytest.mark.parametrize("outputs", [(), ("logits",)])
def test_eval_mode_may_return_other_things(evaluated: str, outputs: tuple[str, ...]) -> None:
    made = (ReturnsByMode(width, evaluated) for width in (64, 16))
    result = abcfx.transform(
        next(made), X, base=next(made), optimizer="adam", lr=0.1, capture=abcfx.Capture(outputs=outputs)
    )
    trained = result.module(X)["logits"]
    got = result.module.eval()(X)
    if evaluated != "sum":
        torch.testing.assert_close(got["logits"] if evaluated == "logits" else got[0], trained)
    assert result.spec["first.q.weight"]["role"] == "hidden"


def test_the_loss_of_checks_is_made_of_the_same_outputs() -> None:
    ids = torch.randint(3, (2, 5), generator=torch.Generator().manual_seed(0))
    model = Returns(16, "hidden")
    logits, hidden = model(X)
    by_logits = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    for beside, output in (("hidden", (hidden, logits)), ("", logits)):
        paths = _transformed(beside).outcome.dag.output_paths
        loss = OutputLoss(tuple({"0": "1", "": ""}[path] for path in paths))
        torch.testing.assert_close(loss(output, (X, ids)), by_logits)
    named = OutputLoss(_transformed("features").outcome.dag.output_paths)
    torch.testing.assert_close(named({"features": hidden, "scores": logits}, (X, ids)), by_logits)
    chosen = _transformed("hidden", abcfx.Capture(outputs="1")).outcome.dag.output_paths
    torch.testing.assert_close(
        OutputLoss(chosen)((logits, hidden), (X, ids)), F.cross_entropy(hidden.flatten(0, 1), ids.flatten())
    )


def test_the_loss_of_a_model_that_returns_one_is_that() -> None:
    own, logits = torch.tensor(2.5), torch.zeros(2, 3)
    targets = (X, torch.tensor([0, 1]))
    assert OutputLoss(("1",))((own, logits), targets) == 2.5
    assert OutputLoss(("logits",))({"logits": logits, "loss": own}, targets) == 2.5
    assert OutputLoss(("b",))({"b": own}, targets) == 2.5
    assert OutputLoss(("0", "1"))((logits, own), targets) == pytest.approx(torch.tensor(3.0).log())
    beside = {"aux_loss": own, "logits": logits}
    assert OutputLoss(("logits",))(beside, targets) == pytest.approx(torch.tensor(3.0).log())
    other = {"only_in_eval_mode": logits, "state": torch.zeros(4)}
    assert OutputLoss(("logits",))(other, targets) == pytest.approx(torch.tensor(3.0).log())


class Features(nn.Module):
    """A model that returns its hidden features before the logits, which have more columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.hidden, self.head = nn.Embedding(40, width), nn.Linear(width, width), nn.Linear(width, 40)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.hidden(self.emb(ids)))
        return {"features": features, "scores": self.head(features)}


@pytest.mark.parametrize("check", ["coord", "transfer", "tune", "verify_growth"])
def test_every_check_trains_on_the_logits_and_not_on_what_stands_before_them(check: str) -> None:
    ids = torch.arange(32).view(4, 8)
    batch = (ids, ids.flip(0))
    with torch.random.fork_rng():
        if check == "coord":
            coord = abcfx.coord_check(Features, batch, widths=(16, 32), seeds=1, steps=1, control=False)
            assert {row.name: row.verdict.name for row in coord.rows}["head.weight"] == "PASS"
            assert all(each.verdict is None or each.mean is not None for each in coord.slopes)
        elif check == "transfer":
            runs = abcfx.transfer_check(
                Features,
                [batch] * 5,
                widths=(16, 32),
                steps=5,
                seeds=1,
                control=False,
                backend="sequential",
                lrs=(1e-4, 1e-2, 1e-1),
            ).runs
            assert min(run.loss for run in runs) < 3.0 < max(run.loss for run in runs)
        elif check == "tune":
            assert abcfx.tune(Features, [batch] * 5, width=16, budget=10, seeds=1, steps=5, backend="sequential")
        else:
            small = Features(16)
            checked = abcfx.verify_growth(small, abcfx.grow(small, Features(32), ids), batch, raises=False)
            assert checked.verdict.name == "PASS", str(checked)
