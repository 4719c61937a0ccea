"""A captured graph returns its outputs in the containers of the model, whichever way of capturing made it."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from abcfx.capture import capture
from abcfx.capture.codegen import call_signature
from abcfx.capture.options import CaptureMethod
from abcfx.capture.structure import output_paths


@dataclass
class Plain:
    """A dataclass that torch's pytree does not know."""

    sample: Tensor
    cache: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Slotted:
    """A frozen dataclass without `__dict__`, with an entry that is no tensor."""

    sample: Tensor
    count: int = 3


class Named(NamedTuple):
    """A named tuple."""

    sample: Tensor
    statistics: Tensor


class Attributes(dict[str, Tensor]):
    """A subclass of dict whose keys are attributes as well, as many libraries have one."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Items(list[Tensor]):
    """A subclass of list."""

    @property
    def sample(self) -> Tensor:
        """The first tensor."""
        return self[0]


class Returns(nn.Module):
    """A layer whose result is returned in a container."""

    def __init__(self, make: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 4), make

    def forward(self, x: Tensor) -> object:
        h = self.layer(x)
        return self.make(h, h * 2)


def _hugging_face(sample: Tensor, other: Tensor) -> object:
    """Return an output class of transformers with a cache object in it."""
    from transformers import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    cache = DynamicCache()
    cache.update(other[None, None], sample[None, None], 0)
    return CausalLMOutputWithPast(logits=sample, past_key_values=cache)


def _read(output: object, entry: str) -> Tensor:
    """Return an entry of a container by attribute, or by key where it has no attributes."""
    found = output[entry] if type(output) is OrderedDict else getattr(output, entry)
    assert isinstance(found, Tensor)
    return found


CONTAINERS: dict[str, tuple[Callable[[Tensor, Tensor], object], list[str]]] = {
    "ordered": (lambda a, b: OrderedDict(sample=a, rest=[b, None, {"k": a}]), ["sample", "rest.0", "rest.2.k"]),
    "plain": (lambda a, b: Plain(a, (b,)), ["sample", "cache.0"]),
    "slotted": (lambda a, b: Slotted(a), ["sample"]),
    "named": (Named, ["sample", "statistics"]),
    "attributes": (lambda a, b: Attributes(sample=a, b=b), ["sample", "b"]),
    "items": (lambda a, b: Items([a, b]), ["0", "1"]),
    "hugging face": (_hugging_face, ["logits", "past_key_values.layers.0.keys", "past_key_values.layers.0.values"]),
}


@pytest.mark.parametrize("method", ["symbolic", "export", "record"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_outputs_keep_their_containers(name: str, method: CaptureMethod) -> None:
    make, paths = CONTAINERS[name]
    model, x = Returns(make), torch.randn(3, 4)
    module = capture(model, x, method=method, modes=("train",), verify=False).module
    wanted, got = model(x), module(x)
    assert type(got) is type(wanted)
    entry = "logits" if name == "hugging face" else "sample"
    assert torch.equal(_read(got, entry), _read(wanted, entry))
    output = call_signature(module.graph).output
    assert output_paths(output)[: len(paths)] == paths
    if name != "hugging face":
        assert output_paths(pickle.loads(pickle.dumps(output))) == paths  # with warnings as errors


def test_an_entry_that_is_no_tensor_is_kept() -> None:
    output = capture(Returns(lambda a, b: Slotted(a)), torch.randn(3, 4)).module(torch.randn(3, 4))
    assert output.count == 3
