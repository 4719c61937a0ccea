"""The module that transform returns has the shape of the user's model: blocks that are called, hooked, sharded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import unmarked
from models_blocks import BLOCKS, GPT, METHODS, VOCABULARY, Block, flat, inputs_of, logits_of, make
from torch import fx, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from typed import tensor

import abcfx
from abcfx.capture.emitted import graphs_within
from abcfx.capture.options import CaptureMethod
from abcfx.passes import scale_nodes
from abcfx.plan.options import ApplyMode
from abcfx.rewrite.sequences import EmittedSequential

IDS = inputs_of("gpt", 4)[0]["input_ids"]


def transformed(
    name: str = "gpt", apply: ApplyMode = "insert", method: CaptureMethod = "auto", parametrization: str = "mup"
) -> abcfx.Transformed:
    """Transform a model of width 32 whose base has width 16."""
    torch.manual_seed(0)
    inputs, _ = inputs_of(name, 4)
    model, base = make(name, 32), make(name, 16)
    return abcfx.transform(model, None, inputs, base=base, apply=apply, capture=method, parametrization=parametrization)


def factors(module: nn.Module) -> list[float]:
    """Return the factors of all scale nodes in a module and its submodules."""
    return sorted(note.factor for graph in graphs_within(module) for note in scale_nodes(graph).values())


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
@pytest.mark.parametrize("method", METHODS)
def test_the_module_computes_what_the_flat_graph_does(method: CaptureMethod, parametrization: str) -> None:
    result = transformed(method=method, parametrization=parametrization)
    assert result.module is not flat(result) and isinstance(result.module, fx.GraphModule)
    assert factors(result.module) == factors(flat(result)) != []
    for training in (True, False):
        outputs = [module.train(training)(IDS) for module in (result.module, flat(result))]
        assert torch.equal(*outputs)
    assert torch.allclose(result.fold()(IDS), result.module(IDS), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_submodules_without_a_scale_node_are_of_the_users_class(method: CaptureMethod) -> None:
    module = transformed(method=method).module
    blocks = module.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList) and len(blocks) == 2
    assert all(isinstance(block, Block) and block.attention.heads == 4 for block in blocks)
    assert [type(each) for each in (module.embed, module.head)] == [nn.Embedding, nn.Linear]


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("apply", ["insert", "absorb"])
def test_hooks_on_every_submodule_run_as_on_the_users_model(name: str, apply: ApplyMode) -> None:
    inputs, _ = inputs_of(name, 4)
    torch.manual_seed(0)
    calls = [_calls(module, inputs) for module in (make(name, 32), transformed(name, apply).module)]
    assert calls[0] and calls[0] == calls[1]


def _calls(module: nn.Module, inputs: dict[str, torch.Tensor]) -> list[tuple[str, object, object]]:
    """Return path, shapes of arguments and shapes of results of every call of a submodule, in order."""
    found: list[tuple[str, object, object]] = []

    def watched(path: str) -> Callable[..., None]:
        return lambda _, args, kwargs, out: found.append((path, _shapes((args, kwargs)), _shapes(out)))

    for path, each in module.named_modules():
        if path:
            each.register_forward_hook(watched(path), with_kwargs=True)
    module.eval()(**inputs)
    return found


def _shapes(value: object) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("apply", ["insert", "absorb"])
def test_a_hook_changes_values_and_a_block_can_be_replaced(apply: ApplyMode) -> None:
    module = transformed(apply=apply).module.eval()
    block = module.get_submodule("blocks.1")
    before = module(IDS)
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True, prepend=True
    )
    assert not torch.allclose(module(IDS), before)
    handle.remove()
    backward: list[object] = []
    block.register_full_backward_hook(lambda *_: backward.append(1))
    module(IDS).sum().backward()
    assert backward == [1]
    blocks = module.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[1] = nn.Identity()
    assert not torch.allclose(module(IDS), before)


@pytest.mark.parametrize("apply", ["insert", "absorb"])
def test_checkpointed_blocks_save_memory_and_give_the_same_gradients(apply: ApplyMode) -> None:
    plain, wrapped = (transformed(apply=apply).module.train() for _ in range(2))
    blocks = wrapped.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        blocks[index] = checkpoint_wrapper(block)
    saved = [_saved(module) for module in (plain, wrapped)]
    assert saved[1] < saved[0] / 2
    gradients = [[p.grad for p in module.parameters()] for module in (plain, wrapped)]
    for left, right in zip(*gradients, strict=True):
        assert left is not None and right is not None
        torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def _saved(module: nn.Module) -> int:
    """Run one step and return how many numbers its forward keeps for the backward pass."""
    sizes: list[int] = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        loss = F.cross_entropy(module(IDS).flatten(0, 1), IDS.flatten())
    total = sum(sizes)
    loss.backward()
    return total


@pytest.mark.parametrize("apply", ["absorb", "off"])
def test_without_added_ops_the_module_is_a_copy_of_the_users_class(apply: ApplyMode) -> None:
    model = make("gpt", 32)
    before = copy.deepcopy(model.state_dict())
    result = abcfx.transform(model, IDS, base=make("gpt", 16), apply=apply)
    assert type(result.module) is GPT and result.module is not model
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    folded = result.fold()
    assert folded is not result.module and torch.allclose(folded(IDS), result.module(IDS), atol=1e-5)


def test_absorb_keeps_python_state_that_a_graph_would_freeze() -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return tensor(super().forward(x)) * self.calls  # type: ignore[no-untyped-call]

    def build(width: int) -> Counting:
        return Counting(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))

    x = torch.rand(4, 8)
    module = abcfx.transform(build(64), x, base=build(16), apply="absorb").module
    assert torch.allclose(2 * module(x), module(x))


def test_a_sequential_with_multipliers_inside_is_indexed_as_before() -> None:
    module = transformed(parametrization="ntk").module
    mlp = module.get_submodule("blocks.0.mlp")
    assert isinstance(mlp, EmittedSequential) and len(mlp) == 3 and type(mlp[0]) is nn.Linear
    assert [type(part) for part in mlp] == [nn.Linear, nn.GELU, nn.Linear]


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_copies_and_pickles_are_independent_and_alike(parametrization: str) -> None:
    module = transformed(parametrization=parametrization).module.eval()
    expected = module(IDS)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(IDS), expected) and list(twin.state_dict()) == list(module.state_dict())
        with torch.no_grad():
            twin.get_parameter("blocks.0.mlp.0.weight").zero_()
        assert not torch.equal(twin(IDS), expected) and torch.equal(module(IDS), expected)


def test_conversions_and_loading_reach_every_level() -> None:
    result = transformed(parametrization="ntk")
    module = result.module.double()
    assert module(IDS).dtype == torch.float64
    state = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    module.load_state_dict(state, strict=False)
    assert not module(IDS).any()
    module.requires_grad_(False).eval()
    assert not any(each.training for each in module.modules()) and not any(p.requires_grad for p in module.parameters())


class _Tree(nn.Module):
    """A module that calls random children with nested arguments, and returns nested results."""

    def __init__(self, width: int, plan: tuple[object, ...]) -> None:
        super().__init__()
        self.kind, children = plan[0], plan[1:]
        self.parts = nn.ModuleList(_Tree(width, each) for each in children if isinstance(each, tuple))
        self.layer = nn.Linear(width, width, bias=self.kind != "dict")
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, others: dict[str, torch.Tensor] | None = None, *, scale: float = 1.0) -> object:
        y = self.norm(x) if others is None else x + others["y"]
        for index, part in enumerate(self.parts):
            out = part(y, {"y": x} if index % 2 else None, scale=0.5)
            y = out["y"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
        y = x + scale * torch.tanh(self.layer(y))
        return {"y": y, "x": x} if self.kind == "dict" else (y, x.shape[0]) if self.kind == "tuple" else y


class _Rooted(nn.Module):
    def __init__(self, width: int, plan: tuple[object, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 2)
        self.tree = _Tree(width, plan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.tree(self.first(x))
        return self.last(out["y"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out)


KINDS = st.sampled_from(["plain", "dict", "tuple"])
PLANS = st.recursive(st.tuples(KINDS), lambda inner: st.tuples(KINDS, inner, inner) | st.tuples(KINDS, inner))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(plan=PLANS, method=st.sampled_from(METHODS), parametrization=st.sampled_from(["mup", "ntk"]))
def test_random_trees_of_modules(plan: tuple[object, ...], method: CaptureMethod, parametrization: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 8)
    model, base = _Rooted(32, plan), _Rooted(16, plan)
    result = abcfx.transform(model, x, base=base, capture=method, parametrization=parametrization)
    assert torch.equal(result.module(x), flat(result)(x))
    assert result.module is not flat(result)
    assert list(unmarked(result.module.state_dict())) == list(model.state_dict())
    counts: list[str] = []
    for path, each in result.module.named_modules():
        if path and not isinstance(each, nn.ModuleList):
            each.register_forward_hook(lambda _, __, ___, path=path: counts.append(path))
    result.module(x)
    assert sorted(counts) == sorted(
        path
        for path, each in model.named_modules()
        if path and not isinstance(each, nn.ModuleList) and _runs(path, model)
    )


def _runs(path: str, model: nn.Module) -> bool:
    """Whether a module of a random tree is called: a norm is, in a part that gets no further values."""
    owner, _, name = path.rpartition(".")
    if name != "norm":
        return True
    parts = [int(step) for step in owner.split(".") if step.isdigit()]
    return not parts or parts[-1] % 2 == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.compile itself
@pytest.mark.parametrize("apply", ["insert", "absorb"])
def test_blocks_compile_once_for_all_of_them(apply: ApplyMode) -> None:
    module = transformed(apply=apply).module.eval()
    expected = module(IDS)
    compiled: list[object] = []

    def backend(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in module.get_submodule("blocks").children():
        block.compile(backend=backend)
    assert torch.allclose(module(IDS), expected, atol=1e-5) and len(compiled) == 1
    assert logits_of(module(IDS)).shape[-1] == VOCABULARY
