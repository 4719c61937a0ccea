"""Wrappers around a model or within it are taken off, or refused by name, in every function that takes a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import unmarked
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import abcfx
from abcfx.capture.given_models import given_model
from abcfx.errors import InvalidInputError

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
Wrap = Callable[[nn.Module], nn.Module]


def mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), middle, nn.Linear(width, 2))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def adapted(model: nn.Module) -> nn.Module:
    tuner = of_package("peft.tuners.lora.model", "LoraModel", attribute="model")
    return of_package("peft.peft_model", "PeftModel", attribute="base_model")(tuner(model))


TAKEN_OFF: list[Wrap] = [compiled, compiled_in_place, nn.DataParallel, checkpoint_wrapper, AveragedModel, adapted]


def of_a_layer(model: nn.Sequential, wrap: Wrap) -> nn.Sequential:
    model[0] = wrap(model[0])
    return model


def within(model: nn.Sequential, wrap: Wrap) -> nn.Sequential:
    model[2] = wrap(model[2])
    return model


@pytest.mark.parametrize("wrap", TAKEN_OFF)
@pytest.mark.parametrize("place", [within, of_a_layer, lambda model, wrap: wrap(model)])
def test_wrapper_is_taken_off(wrap: Wrap, place: Callable[[nn.Sequential, Wrap], nn.Module]) -> None:
    wanted = abcfx.transform(mlp(16), X, base=mlp(8), optimizer="adamw")
    target, base = (place(mlp(n), wrap) for n in (16, 8))
    result = abcfx.transform(target, X, base=base, optimizer="adamw")
    assert {name: each.lr for name, each in result.plan.items()} == {n: each.lr for n, each in wanted.plan.items()}
    assert list(unmarked(result.module.state_dict())) == list(mlp(16).state_dict())
    torch.testing.assert_close(result.module(X), wanted.module(X))
    said = "on 2)" if place is within else "on 0)" if place is of_a_layer else "on the model itself)"
    told = [note for note in result.notes if "without its wrapper" in note]
    assert len(told) == (4 if wrap is adapted else 2) and all(said in note for note in told)
    assert abcfx.check_optimizer(torch.optim.AdamW(result.param_groups), result)


@pytest.mark.parametrize("wrap", TAKEN_OFF)
def test_wrapper_is_refused_in_place(wrap: Wrap) -> None:
    with pytest.raises(InvalidInputError, match=r"apply='inplace' changes the object.*\n.*To fix"):
        abcfx.transform(wrap(mlp(16)), X, base=mlp(8), apply="inplace")


def test_wrapper_within_is_not_changed() -> None:
    model = within(mlp(8), compiled)
    wrapper = model[2]
    plain = given_model("model", model).model
    assert model[2] is wrapper
    assert [id(p) for p in plain.parameters()] == [id(p) for p in model.parameters()]


def test_wrapper_with_hooks_is_refused() -> None:
    wrapped = nn.DataParallel(mlp(8))
    wrapped.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInputError, match=r"DataParallel.*forward hooks"):
        abcfx.transform(wrapped, X)


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def traced(model: nn.Module) -> nn.Module:
    inputs = torch.zeros(2, next(model.parameters()).shape[1])
    return torch.jit.trace(model, inputs)


def quantised(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


def of_package(place: str, kind: str, *, attribute: str = "") -> Wrap:
    """Return a function that wraps a model in a class of another package, or has one of its layers be such a class."""

    class Around(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            setattr(self, attribute, model)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = getattr(self, attribute)(x)
            return out

    class Layer(nn.Linear):
        pass

    def layer(model: nn.Module) -> nn.Module:
        return nn.Sequential(model, Layer(2, 2))

    chosen = Around if attribute else Layer
    chosen.__module__, chosen.__name__, chosen.__qualname__ = place, kind, kind
    return Around if attribute else layer


def packed_parameters(model: nn.Module) -> nn.Module:
    class Params4bit(nn.Parameter):
        pass

    Params4bit.__module__ = "bitsandbytes.nn.modules"
    layer = next(each for each in model.modules() if isinstance(each, nn.Linear))
    layer.weight = torch.Tensor._make_subclass(Params4bit, layer.weight.detach(), True)
    return model


def prepared(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model.train())


def observed(model: nn.Module) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    return torch.ao.quantization.prepare(model.eval())


OTHER_PACKAGES: list[tuple[Wrap, str]] = [
    (of_package("deepspeed.runtime.engine", "DeepSpeedEngine", attribute="module"), "a DeepSpeed engine"),
    (of_package("lightning.fabric.wrappers", "_FabricModule", attribute="_forward_module"), "wrapped by Fabric"),
    (of_package("apex.parallel.distributed", "DistributedDataParallel", attribute="module"), "a wrapper of apex"),
    (of_package("fairscale.nn.fsdp", "FullyShardedDataParallel", attribute="module"), "a wrapper of fairscale"),
    (of_package("megatron.core.transformer.module", "Float16Module", attribute="module"), "a wrapper of megatron"),
    (of_package("bitsandbytes.nn.modules", "Linear8bitLt"), "quantised by bitsandbytes"),
    (of_package("torchao.float8.float8_linear", "Float8Linear"), "converted by torchao"),
    (of_package("auto_gptq.nn_modules.qlinear", "QuantLinear"), "quantised by auto_gptq"),
    (of_package("transformer_engine.pytorch.module.linear", "Linear"), "a module of Transformer Engine"),
    (of_package("peft.tuners.adalora.model", "AdaLoraModel", attribute="model"), "adapted by peft's adalora"),
    (of_package("peft.peft_model", "PeftModel", attribute="base_model"), "learned prompt or prefix"),
    (packed_parameters, "0.weight is a Params4bit of bitsandbytes"),
    (prepared, "prepared for quantisation"),
    (observed, "made by prepare"),
]


@pytest.mark.parametrize(("wrap", "words"), OTHER_PACKAGES)
def test_what_other_packages_make_is_refused_by_name(wrap: Wrap, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        large, small = wrap(mlp(16)), wrap(mlp(8))
    with pytest.raises(InvalidInputError, match=rf"model: .*{words}(?s:.*)To fix: "):
        abcfx.transform(large, X, base=small)


def test_a_module_of_the_users_own_called_module_is_a_part_of_the_model() -> None:
    class Holder(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.module = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.module(x)
            return out

    assert "module.3.weight" in abcfx.transform(Holder(mlp(16)), X, base=Holder(mlp(8))).plan


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, AveragedModel])
def test_weights_are_drawn_through_wrappers(wrap: Wrap) -> None:
    result = abcfx.transform(mlp(16), X, base=mlp(8))
    before = copy.deepcopy(dict(result.module.named_parameters()))
    torch.manual_seed(1)
    wrapped = wrap(copy.deepcopy(result.module))
    result.init_weights(wrapped)
    torch.manual_seed(1)
    result.init_weights()
    for left, (name, right) in zip(wrapped.parameters(), result.module.named_parameters(), strict=True):
        assert torch.equal(left, right) and (right.dim() < 2 or not torch.equal(right, before[name]))
    with pytest.raises(InvalidInputError, match=r"init_weights: '2.0.weight' of the plan is no parameter"):
        result.init_weights(mlp(16)[:2])


REFUSED: list[tuple[Wrap, str]] = [(scripted, "TorchScript"), (traced, "TorchScript"), (quantised, "quantised")]


@pytest.mark.parametrize(("wrap", "words"), REFUSED)
def test_refused_by_name_everywhere(wrap: Wrap, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad, part = wrap(mlp(8)), within(mlp(8), wrap)
    loss = nn.functional.mse_loss
    batches = [(X, torch.zeros(5, 2))] * 5
    rates = [1e-3, 1e-2, 1e-1]
    calls: list[Callable[[], object]] = [
        lambda: abcfx.tune(lambda width: bad, batches, width=8, loss=loss, steps=5, backend="sequential"),
        lambda: abcfx.transfer_check(
            lambda width: bad, batches, widths=(4, 8), lrs=rates, loss=loss, steps=5, backend="sequential"
        ),
        lambda: abcfx.transform(bad, X, base=mlp(4)),
        lambda: abcfx.transform(part, X, base=mlp(4)),
        lambda: abcfx.transform(mlp(16), X, base=bad),
        lambda: abcfx.transform(mlp(16), X, base=lambda: bad),
        lambda: abcfx.grow(bad, mlp(16), X),
        lambda: abcfx.grow(mlp(4), bad, X),
        lambda: abcfx.upcycle(bad, mlp(8), X),
        lambda: abcfx.verify_growth(bad, mlp(16), X),
        lambda: abcfx.coord_check(lambda width: bad, X, widths=(4, 8), optimizer="adamw"),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=rf"(?s){words}.*To fix: give the "):
            call()


def test_compiled_models_grow() -> None:
    small, large = mlp(8), mlp(16)
    grown = abcfx.grow(compiled(small), compiled(large), X).module
    assert grown is large
    torch.testing.assert_close(grown(X), small(X))


def test_growing_into_meta_is_refused() -> None:
    with torch.device("meta"):
        large = mlp(16)
    for into in (large, lambda: large):
        with pytest.raises(InvalidInputError, match=r"into: 0.weight is on the meta device"):
            abcfx.grow(mlp(8), into, X)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_called_without_gradients(mode: Callable[[], torch.inference_mode]) -> None:
    large, small = mlp(16), mlp(8)
    with mode():
        inputs = torch.randn(5, 8)
        result = abcfx.transform(large, inputs, base=small, optimizer="adamw")
        assert not torch.is_grad_enabled()
    result.module(X).sum().backward()
    assert all(parameter.grad is not None for parameter in result.module.parameters())


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = mlp(8)
    with pytest.raises(InvalidInputError, match=r"0.weight was made under torch.inference_mode"):
        abcfx.transform(model, X)


def test_nested_input_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    with pytest.raises(InvalidInputError, match="NestedTensor"):
        abcfx.transform(mlp(8), nested)


def test_functions_that_build_no_model() -> None:
    with pytest.raises(InvalidInputError, match=r"base: a function that calls a Sequential \(torch.vmap"):
        abcfx.transform(mlp(8), X, base=torch.vmap(mlp(8)))
    with pytest.raises(InvalidInputError, match="base: expected a module or a function without arguments"):
        abcfx.transform(mlp(8), X, base=mlp)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_module", [False, True])
def test_programs_of_torch_export_are_refused(as_module: bool) -> None:
    program = torch.export.export(mlp(8), (X,))
    given: Any = program.module() if as_module else program
    with pytest.raises(InvalidInputError, match=r"torch\.export made.*\n  To fix: give the nn\.Module"):
        abcfx.transform(given, X)
