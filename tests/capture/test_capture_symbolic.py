"""Symbolic capture gives a module that equals the model bit for bit in both modes, and changes nothing of the model."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import random
from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typed import given

from abcfx.capture import CapturedGraph, EmittedModule, capture
from abcfx.capture.options import CaptureMethod
from abcfx.errors import InvalidInputError
from abcfx.support.location import location


class Block(nn.Module):
    """Attention with a mask in a buffer, dropout as a function and as a module, and batch norm."""

    mask: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.2)
        self.batch_norm = nn.BatchNorm1d(width)
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).bool(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).split(width, dim=-1)
        att = (q @ k.transpose(-2, -1)) / width**0.5
        att = att.masked_fill(~self.mask[:length, :length], float("-inf")).softmax(-1)
        y = F.dropout(att, 0.1, training=self.training) @ v
        y = self.batch_norm(y.flatten(0, 1)).view(batch, length, width)
        return x + self.drop(self.out(y))


class GPT(nn.Module):
    """A tied language model that uses one block twice and returns a dict when it is given targets."""

    def __init__(self, width: int = 16, vocabulary: int = 30) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(32, width)
        self.block = Block(width)
        self.gain = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        self.unused = nn.Linear(3, 3)
        self.register_buffer("unused_buffer", torch.zeros(2))

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None, *, scale: float = 1.0) -> object:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = self.block(self.block(x))
        logits = self.head(x * self.gain) * scale
        if targets is None:
            return logits
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(1))


def seeded(module: Callable[..., torch.Tensor], *args: object, **kwargs: object) -> torch.Tensor:
    """Call a module after torch's generator was set to a seed."""
    torch.manual_seed(3)
    return module(*args, **kwargs)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_output_and_gradients_are_bitwise_equal(
    model: nn.Module, ids: torch.Tensor, with_inputs: bool, training: bool
) -> None:
    captured = capture(model, ids if with_inputs else None)
    twin = copy.deepcopy(model).train(training)
    emitted = captured.module.train(training)
    expected, got = seeded(twin, ids), seeded(emitted, ids)
    assert torch.equal(expected, got)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, parameter), other in zip(emitted.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, given(other.grad)), name
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, emitted.get_buffer(name)), name


def test_functional_dropout_makes_two_graphs(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model).module
    assert emitted.eval_graph is not None
    assert torch.equal(emitted.eval()(ids), emitted(ids))
    assert not torch.equal(emitted.train()(ids), emitted(ids))


def test_same_graph_in_both_modes_is_kept_once() -> None:
    assert capture(nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.BatchNorm1d(3))).module.eval_graph is None


def test_names_parameters_and_ties_are_the_models_own(model: nn.Module) -> None:
    emitted = capture(model).module
    assert list(emitted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in emitted.named_buffers()] == [n for n, _ in model.named_buffers()]
    for (name, parameter), (other, original) in zip(emitted.named_parameters(), model.named_parameters(), strict=True):
        assert name == other and parameter is original
    assert emitted.get_parameter("head.weight") is emitted.get_parameter("wte.weight")
    emitted.load_state_dict(GPT().state_dict())
    copied = copy.deepcopy(emitted)
    assert copied.get_parameter("head.weight") is copied.get_parameter("wte.weight") and copied.get_parameter(
        "wte.weight"
    ) is not model.get_parameter("wte.weight")


def test_signature_is_the_models_own(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model).module
    assert [(p.name, p.kind, p.default) for p in inspect.signature(emitted.forward).parameters.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(model.forward).parameters.values()
    ]
    emitted.eval()
    assert torch.equal(emitted(ids=ids, scale=1.0), emitted(ids, None))


def test_defaults_taken_without_inputs_are_noted(model: nn.Module) -> None:
    assert any("targets was taken as None" in note for note in capture(model).notes)
    assert not capture(model, torch.zeros(2, 4, dtype=torch.long)).notes


def test_optional_argument_given_is_captured(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model, ids, {"targets": ids}).module.eval()
    model.eval()
    out, expected = emitted(ids, targets=ids), model(ids, targets=ids)
    assert out.keys() == expected.keys() and torch.equal(out["loss"], expected["loss"])
    with pytest.raises(InvalidInputError, match=r"forward\(targets=\.\.\.\).*a tensor.*None"):
        emitted(ids)


def test_call_that_the_graph_does_not_fit_is_refused(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model).module
    with pytest.raises(InvalidInputError, match=r"targets.*captured with None"):
        emitted(ids, ids)
    with pytest.raises(InvalidInputError, match=r"scale.*captured with 1\.0.*called with 2\.0"):
        emitted(ids, scale=2.0)
    with pytest.raises(TypeError):
        emitted(ids, nonsense=1)


def test_model_is_untouched(model: GPT, ids: torch.Tensor) -> None:
    model.train()
    model.block.batch_norm.eval()
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    buffers, flags = statistics(model), [m.training for m in model.modules()]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    capture(model, ids)
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, model.get_buffer(name)) for name, value in buffers.items())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()


def test_attribute_set_in_forward_does_not_stay_on_the_model() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.history: list[torch.Tensor] = []
            self.last: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            self.history.append(x)
            return x * 2

    model = Remembers()
    capture(model)
    assert model.last is None and model.history == []


def test_shapes_are_on_every_node_and_small_batches_are_enlarged(model: nn.Module, ids: torch.Tensor) -> None:
    module = capture(model, ids[:1]).module
    for graph in module.graphs:
        assert all("val" in node.meta for node in graph.nodes if node.op != "output")
        shape = {node.name: getattr(node.meta.get("val"), "shape", None) for node in graph.nodes}
        assert shape["head"] == (3, 7, 30) and shape["gain"] == (16,)
        assert all(not torch.is_tensor(v := n.meta.get("val")) or v.device.type == "meta" for n in graph.nodes)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(4, 4), (torch.ones(2, 4),)),
        (nn.LSTM(4, 5, 2), (torch.ones(6, 2, 4),)),
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.ones(2, 4, 8),) * 3),
        (nn.BatchNorm1d(4), (torch.rand(5, 4),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_model_that_is_one_torch_layer(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    captured = capture(layer, inputs)
    (call,) = captured.module.graph.find_nodes(op="call_module", target="_root_leaf")
    assert isinstance(captured.module.get_submodule(call.target), type(layer))
    assert list(captured.module.state_dict()) == list(layer.state_dict())
    twin, copied = copy.deepcopy(layer), copy.deepcopy(captured.module)
    for emitted in (captured.module, copied, copied.to(torch.float64).to(torch.float32)):
        expected, got = twin(*inputs), emitted(*inputs)
        for left, right in zip(*((o if isinstance(o, tuple) else (o,)) for o in (expected, got)), strict=True):
            assert torch.equal(left, right) if torch.is_tensor(left) else True
    assert copied.eval().get_submodule(call.target).training is False
    assert all(
        a is b for a, b in zip(copied.parameters(), copied.get_submodule("_root_leaf").parameters(), strict=True)
    )


def test_deepcopy_keeps_meta_and_both_graphs(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model, ids).module
    copied = copy.deepcopy(emitted)
    for left, right in zip(emitted.graphs, copied.graphs, strict=True):
        assert [n.meta.keys() for n in left.nodes] == [n.meta.keys() for n in right.nodes]
    graph = given(copied.eval_graph)
    for node in graph.find_nodes(op="call_module", target="head"):
        with graph.inserting_after(node):
            scaled = graph.call_function(torch.mul, (node, 0.0))
        node.replace_all_uses_with(scaled, delete_user_cb=lambda user, new=scaled: user is not new)
    copied.recompile()
    assert copied.eval()(ids).abs().max() == 0 and emitted.eval()(ids).abs().max() > 0
    assert copied.train()(ids).abs().max() > 0


@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(model: nn.Module, ids: torch.Tensor, training: bool) -> None:
    emitted = capture(model, ids).module.train(training)
    compiled = torch.compile(emitted, fullgraph=True, backend="eager")
    assert torch.equal(seeded(copy.deepcopy(emitted), ids), seeded(compiled, ids))


def test_emitted_module_can_be_captured_again(model: nn.Module, ids: torch.Tensor) -> None:
    first = capture(model, ids).module
    second = capture(first, ids).module
    assert list(second.state_dict()) == list(model.state_dict())
    assert second.eval_graph is not None
    for training in (True, False):
        assert torch.equal(seeded(copy.deepcopy(first).train(training), ids), seeded(second.train(training), ids))


def test_containers_and_varargs() -> None:
    class Takes(nn.Module):
        def forward(
            self, first: torch.Tensor, *rest: torch.Tensor, flags: tuple[bool, ...] = (), **named: torch.Tensor
        ) -> object:
            for value in rest:
                first = first + value
            for value in named["more"]:
                first = first * value
            return (first, [first - 1]) if flags[0] else None

    x = torch.rand(3)
    call = {"flags": (True, "a"), "more": [x + 1, x + 2]}
    captured = capture(Takes(), (x, x, x), call)
    expected, got = Takes()(x, x, x, **call), captured.module(x, x, x, **call)
    assert torch.equal(expected[0], got[0]) and torch.equal(expected[1][0], got[1][0]) and isinstance(got[1], list)
    with pytest.raises(InvalidInputError, match="rest"):
        captured.module(x, x, **call)
    with pytest.raises(InvalidInputError, match="flags"):
        captured.module(x, x, x, **{**call, "flags": (True, "b")})


def test_random_factories_are_drawn_on_every_call() -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn(3)

    emitted = capture(Noise()).module
    x = torch.zeros(3)
    assert torch.equal(seeded(emitted, x), seeded(Noise(), x)) and not torch.equal(emitted(x), emitted(x))


def test_tensor_written_in_place_starts_afresh_on_every_call() -> None:
    class Accumulates(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(3)
            total += x
            total.mul_(2)
            return total

    emitted = capture(Accumulates()).module
    x = torch.ones(3)
    assert torch.equal(emitted(x), Accumulates()(x)) and torch.equal(emitted(x), Accumulates()(x))


def test_location_names_module_and_line(model: nn.Module) -> None:
    module = capture(model).module
    (node,) = [n for n in module.graph.nodes if n.target is F.dropout][:1]
    assert location(node).startswith("block (test_capture_symbolic.py:")
    assert location(node).endswith("y = F.dropout(att, 0.1, training=self.training) @ v)")
    (placeholder, *_) = module.graph.find_nodes(op="placeholder")
    assert location(placeholder) == "argument 'ids'"


def test_unknown_method_is_refused(model: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match=r"method=.guess. is not known"):
        capture(model, method=cast("CaptureMethod", "guess"))


def test_result_is_complete(model: nn.Module, ids: torch.Tensor) -> None:
    captured = capture(model, ids)
    assert isinstance(captured, CapturedGraph) and isinstance(captured.module, EmittedModule)
    assert (captured.method, captured.model, captured.kwargs) == ("symbolic", model, {})
    assert captured.args == (ids,)


def test_pickle_keeps_graphs_weights_and_ties(model: nn.Module, ids: torch.Tensor) -> None:
    emitted = capture(model, ids).module
    loaded = pickle.loads(pickle.dumps(emitted))
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("wte.weight") and loaded.get_parameter(
        "head.weight"
    ) is not model.get_parameter("wte.weight")
    for training in (True, False):
        twin, again = (copy.deepcopy(module).train(training) for module in (emitted, loaded))
        assert torch.equal(seeded(twin, ids), seeded(again, ids)) and type(again).__name__ == "GPT"
    for left, right in zip(emitted.graphs, loaded.graphs, strict=True):
        assert [n.name for n in left.nodes] == [n.name for n in right.nodes]
        assert [location(n) for n in left.nodes] == [location(n) for n in right.nodes]
    with pytest.raises(InvalidInputError, match="targets"):
        loaded(ids, ids)


def test_graph_with_guards_says_that_it_cannot_be_pickled(ids: torch.Tensor) -> None:
    emitted = capture(GPT(), ids, method="export", modes=("eval",), verify=False).module
    with pytest.raises(pickle.PicklingError, match="capture the model again"):
        pickle.dumps(emitted)


def test_decorated_forward_is_called_as_in_the_example() -> None:
    def with_default(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(function)
        def wrapper(self: nn.Module, x: torch.Tensor, **kwargs: object) -> torch.Tensor:
            return function(self, x, scale=kwargs.pop("scale", 3.0), **kwargs)

        return wrapper

    class Decorated(nn.Module):
        @with_default
        def forward(self, x: torch.Tensor, scale: float = 0.0) -> torch.Tensor:
            return x * scale

    x = torch.ones(3)
    assert torch.equal(capture(Decorated(), x).module(x), x * 3)
    assert torch.equal(capture(Decorated(), x, method="export").module(x), x * 3)
    assert torch.equal(capture(Decorated(), x, {"scale": x + 1}).module(x, scale=x), x)
