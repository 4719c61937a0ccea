"""Every public function and layer of torch has a rule, a reason why it has none, or nothing to do with tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import get_overridable_functions

import abcfx
from abcfx.capture.leaves import _CALL_ONE_FUNCTION
from abcfx.dag.arguments import _WITHOUT_EFFECT
from abcfx.errors import UnknownOpError
from abcfx.rules import find_function_rule, find_module_rule, plain_name
from abcfx.rules.elementwise import constant
from abcfx.rules.refused import REFUSED
from abcfx.rules.registry import _BY_MODULE, _BY_NAME

NOT_ON_TENSORS = {
    *("array", "array_wrap", "contains", "deepcopy", "dlpack", "dlpack_device", "format", "len", "reduce_ex", "repr"),
    *("reversed", "setstate", "backward", "clear_non_serializable_cached_data", "module_load", "register_hook"),
    *("register_post_accumulate_grad_hook", "share_memory", "storage", "storage_type", "autocast"),
    *("rlshift", "rrshift"),  # of integers
    *("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum"),  # of sizes
}
"""Functions that return no tensor or no entries of one, by plain name."""

NOT_COMPUTING = {
    *("Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"),
    *("DataParallel", "RNNBase", "RNNCellBase"),
}
WITHOUT_RULE = {
    "AdaptiveLogSoftmaxWithLoss": "chooses clusters by its targets",
    "CrossMapLRN2d": "keeps buffers from forward to backward; LocalResponseNorm is the same function",
    "TripletMarginWithDistanceLoss": "calls a function of its own",
}


def public_names() -> set[str]:
    """Return the plain names of all functions and methods that torch lets other classes override."""
    functions = [each for of_module in get_overridable_functions().values() for each in of_module]
    names = {name.strip("_") for each in functions if (name := plain_name(each)) is not None}
    return names - {""}


def test_each_function_is_covered_once() -> None:
    for name in public_names():
        places = [find_function_rule(name) is not None, name in REFUSED, name in NOT_ON_TENSORS]
        assert sum(places) == 1, name


def test_each_layer_is_covered_once() -> None:
    for name, layer in vars(nn).items():
        if not (inspect.isclass(layer) and issubclass(layer, nn.Module)) or name.startswith("Lazy"):
            continue
        ruled = any(cls in _BY_MODULE for cls in layer.__mro__)
        opened = issubclass(layer, _CALL_ONE_FUNCTION)
        assert sum([ruled, opened, name in NOT_COMPUTING, name in WITHOUT_RULE]) == 1, name


def test_no_rule_swallows_keywords() -> None:
    for rule in {*_BY_NAME.values(), *_BY_MODULE.values()}:
        swallows = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(rule).parameters.values())
        assert not swallows or rule is constant, rule


class Model(nn.Module):
    """A function of an activation (batch, width) and of the parameters `matrix` and `vector`, between two layers."""

    def __init__(self, width: int, body: Callable[[Model, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.vector, self.other = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self, self.stem(x)))


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["linalg_lstsq", "svd_lowrank", "lobpcg", "linalg_vander", "unique_consecutive"])
def test_a_refusal_tells_its_reason(name: str) -> None:
    function = getattr(torch, name, None) or getattr(torch.linalg, name.removeprefix("linalg_"))

    def body(self: Model, h: torch.Tensor) -> torch.Tensor:
        result = function(h.T @ h, h.T) if name == "linalg_lstsq" else function(h.T @ h)
        return h + (result if isinstance(result, torch.Tensor) else result[0]).sum()

    with pytest.raises(UnknownOpError, match=REFUSED[name]):
        abcfx.transform(Model(16, body))


MATTERS: dict[str, Callable[[Model, torch.Tensor], torch.Tensor]] = {
    "lerp": lambda self, h: torch.lerp(h, h.tanh(), self.fc(h).sigmoid()),
    "lerp by keyword": lambda self, h: h.lerp(h.tanh(), weight=self.fc(h).sigmoid()),
    "clamp": lambda self, h: torch.clamp(h, max=self.fc(h)),
    "addcmul": lambda self, h: torch.addcmul(h, h, self.fc(h)),
    "addcdiv": lambda self, h: torch.addcdiv(h, h, self.fc(h).exp(), value=0.5),
    "where": lambda self, h: torch.where(h > 0, h, self.fc(h)),
    "xlogy": lambda self, h: torch.xlogy(h, self.fc(h).exp()),
    "atan2": lambda self, h: torch.atan2(h, self.fc(h)),
    "pow": lambda self, h: h.abs().pow(self.fc(h)),
    "add, scaled": lambda self, h: torch.add(h, self.fc(h), alpha=0.1),
    "index_add": lambda self, h: h.index_add(0, torch.tensor([0, 1, 2, 3, 4]), self.fc(h), alpha=0.5),
    "grid_sample": lambda self, h: F.grid_sample(
        h[:, :, None, None], self.fc(h)[:, None, None, :2].tanh(), align_corners=False
    )[:, :, 0, 0],
    "outer": lambda self, h: h * torch.outer(h[:, 0], self.fc(h)[0]),
    "fill_": lambda self, h: h + torch.zeros_like(h).fill_(self.fc(h).mean()),
    "huber_loss": lambda self, h: h + F.huber_loss(h, self.fc(h), reduction="none"),
    "batch_norm": lambda self, h: F.batch_norm(
        self.fc(h), None, None, bias=self.other, weight=self.vector, training=True
    ),
    "layer_norm": lambda self, h: F.layer_norm(self.fc(h), h.shape[-1:], bias=self.other, weight=self.vector),
    "rms_norm": lambda self, h: F.rms_norm(self.fc(h), h.shape[-1:], weight=self.vector),
    "instance_norm": lambda self, h: F.instance_norm(self.fc(h).T[None], bias=self.other, weight=self.vector)[0].T,
    "prelu": lambda self, h: F.prelu(self.fc(h), weight=self.vector),
}


@pytest.mark.parametrize("name", MATTERS)
def test_each_tensor_that_an_op_is_given_matters(name: str) -> None:
    base, model = (Model(width, MATTERS[name]) for width in (16, 64))
    spec = abcfx.transform(model, X, base=base).spec
    assert spec["fc.weight"]["role"] == "hidden"
    norms = "norm" in name
    assert (spec["vector"]["role"] == "vector") == (norms or name == "prelu")
    assert (spec["other"]["role"] == "vector") == (norms and name != "rms_norm")


def test_a_rule_that_forgets_an_argument_is_refused_unless_it_says_so() -> None:
    def body(self: Model, h: torch.Tensor) -> torch.Tensor:
        return torch.hypot(h, self.fc(h))

    with (
        abcfx.rules.override("hypot", lambda op, x, y: op.same(x)),
        pytest.raises(UnknownOpError, match=r"loses fc, which training changes[\s\S]*op\.disregard"),
    ):
        abcfx.transform(Model(16, body))

    def forgets(op: abcfx.rules.Op, x: abcfx.rules.Value, y: abcfx.rules.Value) -> abcfx.rules.Value:
        op.disregard(y)
        return op.same(x)

    with abcfx.rules.override("hypot", forgets):
        assert abcfx.transform(Model(16, body)).spec["fc.weight"]["role"] == "plain"


def test_a_module_rule_that_forgets_a_parameter_is_refused() -> None:
    class Own(nn.Linear):
        pass

    class WithOwn(Model):
        def __init__(self, width: int) -> None:
            super().__init__(width, lambda self, h: self.fc(h))
            self.fc = Own(width, width)

    with (
        abcfx.rules.override(Own, lambda op, module, x: op.same(x)),
        pytest.raises(UnknownOpError, match=r"loses fc\.weight, fc\.bias, which training changes"),
    ):
        abcfx.transform(WithOwn(16))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Unfold((1, 1)),
        nn.ConstantPad2d(1, 0.0),
        nn.CircularPad2d(1),
        nn.LPPool2d(2, 2),
        nn.LocalResponseNorm(3),
        nn.Softmax2d(),
        nn.Softmin(1),
        nn.FractionalMaxPool2d(2, 2),
    ],
    ids=lambda e: type(e).__name__,
)
def test_layers_that_call_one_function_are_that_function(layer: nn.Module) -> None:
    class Pictures(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.fc, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), nn.Linear(width, 2)
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.fc(self.stem(x)).relu()).flatten(2).mean(-1))

    x = torch.randn(2, 3, 4, 4)
    spec = abcfx.transform(Pictures(64), x, base=Pictures(16)).spec
    assert (spec["fc.weight"]["role"], spec["fc.weight"]["c"]) == ("hidden", 1.0)
    assert find_module_rule(layer) is None


def test_rules_take_the_keywords_that_exported_ops_have() -> None:
    lacking: dict[str, set[str]] = {}
    every = torch._C._dispatch_get_all_op_names()  # dir(torch.ops.aten) has those only that were called before
    packets = {name.removeprefix("aten::").split(".")[0] for name in every if name.startswith("aten::")}
    for packet in (getattr(torch.ops.aten, name) for name in sorted(packets) if hasattr(torch.ops.aten, name)):
        for overload in packet.overloads():
            call = getattr(packet, overload)
            rule = None if call._schema.is_mutable or "out" in overload.split("_") else find_function_rule(call)
            if rule is None:
                continue
            keywords = {argument.name for argument in call._schema.arguments if argument.kwarg_only}
            taken = inspect.signature(rule).parameters
            takes_all = any(each.kind is each.VAR_KEYWORD for each in taken.values())
            if missing := keywords - _WITHOUT_EFFECT - taken.keys():
                lacking |= {} if takes_all else {str(call): missing}
    assert not lacking
