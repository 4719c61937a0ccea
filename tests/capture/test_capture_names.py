"""Names of modules that are no plain Python names are captured, and never run as code."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture import capture
from abcfx.capture.options import CaptureMethod
from abcfx.errors import UncapturableError

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
        "</script><script>",
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


class Rooted(nn.Module):
    """A model with a layer, a parameter, a buffer or a plain tensor of the given name at its root."""

    def __init__(self, name: str, kind: str, width: int) -> None:
        super().__init__()
        self.called, self.out = name, nn.Linear(width, 3)
        if kind == "buffer":
            self.register_buffer(name, torch.randn(4, width))
        else:
            makers = {"parameter": lambda w: nn.Parameter(torch.randn(4, w)), "tensor": lambda w: torch.randn(4, w)}
            setattr(self, name, makers.get(kind, lambda w: nn.Linear(4, w))(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the part of that name, then a layer."""
        part = getattr(self, self.called)
        return torch.as_tensor(self.out(torch.tanh(part(x) if isinstance(part, nn.Module) else x @ part)))


@pytest.mark.parametrize("kind", ["layer", "parameter", "buffer", "tensor"])
@pytest.mark.parametrize("name", ["code", "meta", "print_readable", "add_submodule"])
def test_names_of_graph_modules(name: str, kind: str) -> None:
    """A root may have parts that are called as attributes of a GraphModule are; copies and pickles keep them."""
    torch.manual_seed(0)
    model, x = Rooted(name, kind, 16), torch.randn(5, 4)
    result = abcfx.transform(model, x, base=Rooted(name, kind, 4), init="keep")
    out = result.module(x)
    copies = [copy.deepcopy(result.module), copy.copy(result.module)]
    if kind != "tensor":  # a plain tensor is recorded, and a recorded graph has checks of sizes, which pickle refuses
        copies.append(pickle.loads(pickle.dumps(result.module)))
    assert all(torch.equal(each(x), out) for each in copies)
    torch.testing.assert_close(result.fold()(x), out)
    assert list(result.module.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["graph", "recompile"])
def test_names_that_a_graph_module_needs(name: str) -> None:
    """A part called as what torch.fx itself needs of a GraphModule is refused by name, and the advice works."""
    model, x = Rooted(name, "layer", 4), torch.randn(5, 4)
    with pytest.raises(UncapturableError, match=f"{name}[^ ]*, as an attribute of torch.fx.GraphModule"):
        capture(model, x)
    whole = nn.Sequential(model)
    torch.testing.assert_close(capture(whole, x).module(x), whole(x))


def test_names_in_reports(tmp_path: Path) -> None:
    """A report in words, HTML, JSON and as a figure runs and contains no name as markup."""
    torch.manual_seed(0)
    result = abcfx.transform(Keyed(NAMES), torch.randn(3, 3))
    assert str(result) and result.to_dict() and result.to_mermaid()
    page = tmp_path / "page.html"
    result.to_html(page)
    text = page.read_text(encoding="utf-8")
    assert "</script><script>" not in text
    assert "<b>." not in text
