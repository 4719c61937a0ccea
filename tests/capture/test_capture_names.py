"""Names of modules that are no plain Python names are captured, and never run as code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from abcfx.capture import capture
from abcfx.capture.options import CaptureMethod

# Raises when it runs; torch refuses names with dots, so there are none in it.
_RUN = "str(1/0)"
NAMES = (
    *("in", "class", "None", "def", "{}", "{0}", "%s", "0", "a b", "a-b", "'", '"', "\\", '\\"', "\n", "\r", "\t", "#"),
    *(
        "\ufb01",
        "\u00e9",
        "\u2028",
        "'''",
        '"""',
        "a\nb",
        "a\\",
        ")",
        "(",
        "]",
        ";",
        "<b>",
        "&amp;",
        "[red]",
        "$x",
        "`x`",
    ),
    *(f'"+{_RUN}+"', f"'+{_RUN}+'", f'"), {_RUN}, ("', f'x")\n{_RUN}\n#', f'\\"+{_RUN}+"', f"\n{_RUN}\n"),
)


class Keyed(nn.Module):
    """A model whose layers have the given names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(3, 3) for name in names})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all layers."""
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("method", ["symbolic", "export", "record"])
def test_names_that_are_no_identifiers(method: CaptureMethod) -> None:
    """A graph computes what the model does, keeps its names, and runs none of them."""
    torch.manual_seed(0)
    model, x = Keyed(NAMES), torch.randn(3, 3)
    captured = capture(model, x, method=method)
    torch.testing.assert_close(captured.module(x), model(x))
    assert list(captured.module.state_dict()) == list(model.state_dict())
