"""Every captured graph is compared with its model: wrong outputs and lost gradients are found and named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from abcfx.capture import capture, gradients
from abcfx.errors import CaptureError


def exported() -> bool:
    """Return True within an export; captures do not hide this flag, as they hide `torch.compiler.is_exporting`."""
    return torch.compiler._is_exporting_flag


class DependsOnExport(nn.Module):
    """A layer that computes something else while it is exported, in place of a mistake of an export."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 if exported() else 2)


def test_wrong_graph_is_never_used() -> None:
    with pytest.raises(CaptureError, match=r"wrong in train mode .*output 0 differs by"):
        capture(DependsOnExport(), torch.rand(3, 4), method="export")
    assert capture(DependsOnExport(), torch.rand(3, 4), method="export", verify=False).method == "export"


class Detaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.linear(x.detach() if exported() else x) + x)


def test_wrong_gradient_is_found() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), Detaches()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    with pytest.raises(CaptureError, match=r"gradient of first\.(weight|bias) differs"):
        capture(Stem(), torch.rand(3, 4), method="export")


class DetachesTied(nn.Module):
    """A weight that is used twice; an export loses the gradient of the first use."""

    def __init__(self, rows: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.table = nn.Parameter(torch.randn(rows, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = self.table
        if exported():
            table = table.detach() if self.fault == "detached" else table * 1.0
        return F.linear(F.embedding(ids, table) * self.scale, self.table[:9])


@pytest.mark.parametrize(("rows", "large"), [(12, False), (12, True)])
def test_lost_gradient_of_a_tied_weight_is_found_large_or_not(
    monkeypatch: pytest.MonkeyPatch, rows: int, large: bool
) -> None:
    if large:
        monkeypatch.setattr(gradients, "_LARGE_BYTES", 0)
    model, ids = DetachesTied(rows, "detached"), torch.randint(0, 9, (3, 5))
    assert gradients.large_parameters(model) == (frozenset({"table", "scale"}) if large else frozenset())
    with pytest.raises(CaptureError, match="gradient of table differs"):
        capture(model, ids, method="export")
    # Another way for the same gradient is right.
    assert capture(DetachesTied(rows, "none"), ids, method="export").method == "export"


def test_gradients_of_large_weights_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DetachesTied(12, "none")
    collected = gradients.Gradients(model, frozenset({"table"}))
    monkeypatch.setattr(gradients, "_fingerprint", lambda gradient: gradient.shape)
    with collected.collected():
        collected.backward([model(torch.randint(0, 9, (3, 5)))])
    assert collected.fingerprints == {"scale": (4,)}
    assert collected.routes == {"table": ("EmbeddingBackward0", "SliceBackward0")}
    assert model.table.grad is None and model.scale.grad is None


def test_large_weights_under_a_reentrant_checkpoint_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Checkpointed(DetachesTied):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = F.embedding(ids, self.table)
            return checkpoint(lambda y: F.linear(y * self.scale, self.table), x, use_reentrant=True)

    monkeypatch.setattr(gradients, "_LARGE_BYTES", 0)
    captured = capture(Checkpointed(12, "none"), torch.randint(0, 9, (3, 5)), method="export")
    assert any("checkpoint" in note for note in captured.notes)
