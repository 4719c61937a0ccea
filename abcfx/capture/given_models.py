"""Decide what counts as a model: build it, take wrappers such as `torch.compile` off, refuse what hides its weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from abcfx.errors import InvalidInputError
from abcfx.support import arguments

# Packages of peft whose tuner only calls the model that it put adapters into, and how the name of its class begins.
_TUNERS = {"lora": "Lora", "ia3": "IA3", "loha": "LoHa", "lokr": "LoKr", "mixed": "Mixed"}
# Wrappers that compute what the module in them does: the full name of the class, and the attribute with that module.
# Classes are known by name, since importing some of them takes torch a second.
_TAKEN_OFF = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
    "peft.peft_model.PeftModel": "base_model",
    "peft.mixed_model.PeftMixedModel": "base_model",
    **{f"peft.tuners.{kind}.model.{name}Model": "model" for kind, name in _TUNERS.items()},
}
_BEFORE_SHARDING = (
    "call abcfx before sharding, on the plain model; shard result.module, then result.groups_for(module=...)"
)
_FLOAT = "give the floating-point model that it was made from, and quantise result.fold() after training"
_UNPREPARED = "give the model as it was before prepare or prepare_qat, and prepare result.fold() after training"
# Names of classes that other packages than torch put around a model, and their attribute with the module in it.
_AROUND = {
    **dict.fromkeys(("DistributedDataParallel", "DataParallel", "ShardedDataParallel", "Float16Module"), "module"),
    **dict.fromkeys(("FullyShardedDataParallel", "DeepSpeedEngine", "PipelineModule"), "module"),
    "FlattenParamsWrapper": "_fpw_module",
    "XlaFullyShardedDataParallel": "module",
}
# Classes, or packages of classes, that hide or change the weights, and what to write instead.
_REFUSED = {
    "torch.jit._script.ScriptModule": (
        "a TorchScript module (torch.jit.script or torch.jit.trace): it has no Python code to capture",
        "give the nn.Module that was scripted or traced, without the torch.jit wrapper",
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "wrapped by FSDP: its parameters are flat shards",
        _BEFORE_SHARDING,
    ),
    "torch.distributed.fsdp.FSDPModule": (
        "sharded by fully_shard (FSDP2): its parameters are shards",
        _BEFORE_SHARDING,
    ),
    "torch._functorch.make_functional.": (
        "a functorch module: its parameters are arguments of the call",
        "give the nn.Module that make_functional was called with, not the wrapper",
    ),
    "torch.ao.nn.quantized.": ("quantised: it has no weights that could train", _FLOAT),
    "torch.ao.nn.intrinsic.quantized.": ("quantised: it has no weights that could train", _FLOAT),
    "torch.ao.nn.sparse.quantized.": ("quantised: it has no weights that could train", _FLOAT),
    "torch.ao.nn.qat.": ("prepared for quantisation", _UNPREPARED),
    "torch.ao.nn.intrinsic.qat.": ("prepared for quantisation", _UNPREPARED),
    "torch.ao.quantization.fake_quantize.": ("made by prepare_qat, to imitate quantisation", _UNPREPARED),
    "torch.ao.quantization.observer.": ("made by prepare, to observe values before quantisation", _UNPREPARED),
    "bitsandbytes.nn.": ("quantised by bitsandbytes: its weights are packed integers", _FLOAT),
    **{
        f"{package}.": (f"quantised by {package}: it has no weights that could train", _FLOAT)
        for package in ("auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum.quanto", "aqlm", "eetq")
    },
    "torchao.": (
        "converted by torchao: its weights or its products have another precision",
        "give the model as it was before, and convert result.module",
    ),
    "transformer_engine.": (
        "a module of Transformer Engine: it computes in kernels that no graph shows, perhaps in FP8",
        "transform the same model built of torch.nn layers with apply='absorb', load its state dict into this one, and "
        "give the optimizer result.groups_for(optimizer, module=...)",
    ),
    **{
        f"peft.tuners.{kind}.": (
            f"adapted by peft's {kind}, which adds to the loss, or chooses weights by the inputs",
            "give the model without adapters, or one with LoRA, IA3, LoHa or LoKr",
        )
        for kind in ("adalora", "xlora", "poly")
    },
    "deepspeed.runtime.": (
        "a DeepSpeed engine: it partitions the parameters",
        "call abcfx on the plain model, and give result.module and result.param_groups to deepspeed.initialize",
    ),
    "lightning.fabric.wrappers.": (
        "wrapped by Fabric, which may change precision and parameters",
        "give the nn.Module itself, before fabric.setup; wrap result.module",
    ),
    "lightning_fabric.wrappers.": (
        "wrapped by Fabric, which may change precision and parameters",
        "give the nn.Module itself, before fabric.setup; wrap result.module",
    ),
}
# Packages whose parameters hold packed numbers.
_QUANTISERS = frozenset({"bitsandbytes", "hqq", "quanto", "optimum", "gguf"})
# How many modules a note names.
_NAMED = 3


@dataclass(frozen=True)
class GivenModel:
    """A model that a user gave, without wrappers such as torch.compile or DDP around it.

    Attributes:
        model: the module without wrappers. It shares all parameters and buffers with the one that was given.
        notes: sentences for the report; none if nothing was taken off.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()


def given_model(
    argument: str, given: nn.Module | Callable[[], object], *, in_place: bool = False, on_device: bool = False
) -> GivenModel:
    """Return the module that a user gave, or that a given function builds, without wrappers around it or within it.

    Args:
        argument: the option it was given for ("model", "base"), for messages.
        given: the module or the function.
        in_place: whether that very object will be changed; then a wrapper is refused, since it may have compiled
            or copied what is changed.
        on_device: whether values are needed, so that a model on the meta device is refused.

    Raises:
        InvalidInputError: it is no module; or a wrapper hides its weights; or its tensors cannot be trained.
    """
    if isinstance(given, torch.export.ExportedProgram) or (
        isinstance(given, fx.GraphModule) and "train" in vars(given)
    ):
        raise InvalidInputError(
            f"{argument}: a program that torch.export made is fixed to one mode and cannot train.\n"
            f"  To fix: give the nn.Module that was exported"
        )
    built: object = given if isinstance(given, nn.Module) or not callable(given) else _called(argument, given)
    if not isinstance(built, nn.Module):
        raise InvalidInputError(
            f"{argument}: expected a module or a function that builds one, got {type(built).__name__}.\n"
            f"  To fix: {argument}=Model(width=64), or a function that returns it: lambda: Model(width=64)"
        )
    unwrapping = _Unwrapping(argument, in_place)
    model = unwrapping.plain(built, "")
    _refuse_tensors(argument, model, on_device)
    return GivenModel(model, unwrapping.notes())


def _called(argument: str, function: Callable[[], object]) -> object:
    """Call a function that a user gave to build a model, and return what it returns.

    Raises:
        InvalidInputError: it is no such function, but a module's own call in another guise, or it needs arguments.
    """
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, nn.Module):
        raise InvalidInputError(
            f"{argument}: a function that calls a {type(wrapped).__name__} (torch.vmap or another functorch transform) "
            f"has no parameters of its own.\n  To fix: give the module itself, without the function around it."
        )
    if isinstance(function, type):
        _refuse_class(argument, function)
    with arguments.calling(argument, function):
        try:
            return function()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from within the user's function
            raise InvalidInputError(
                f"{argument}: expected a module or a function without arguments that builds one: {error}.\n"
                f"  To fix: {argument}=lambda: Model(width=64)"
            ) from error


def _refuse_class(argument: str, kind: type) -> None:
    """Refuse a class in the place of a model: one that is no module, or that needs arguments.

    Args:
        argument: the option that the class was given for.
        kind: the class.

    Raises:
        InvalidInputError: the class cannot stand for a function that builds a model.
    """
    call = f"{kind.__name__}()"
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):  # it needs arguments; or it is written in C
        call = f"{kind.__name__}(...)"
    if call.endswith("(...)") or not issubclass(kind, nn.Module):
        raise InvalidInputError(
            f"{argument}: expected a module, got the class {kind.__name__}.\n"
            f"  To fix: {argument}={call if issubclass(kind, nn.Module) else 'Model(width=64)'}, an instance of it."
        )


@dataclass
class _Unwrapping:
    """One walk over a model that takes wrappers such as torch.compile and DDP off its modules.

    Attributes:
        argument: the option that the model was given for.
        in_place: whether the model object that the user gave will itself be changed.
        found: class name and module path of each wrapper.
        done: the plain module for each module that was visited, by its id.
    """

    argument: str
    in_place: bool
    found: list[tuple[str, str]] = field(default_factory=list)
    done: dict[int, nn.Module] = field(default_factory=dict)

    def plain(self, module: nn.Module, path: str) -> nn.Module:
        """Return a module without wrappers; what holds a wrapper becomes a shallow copy over the same tensors.

        Args:
            module: the module.
            path: its module path without wrappers.

        Raises:
            InvalidInputError: a class of module hides its weights, or a wrapper has hooks of its own.
        """
        if id(module) in self.done:
            return self.done[id(module)]
        inner = module
        while (held := self._held(inner, path)) is not None:
            inner = held
        self.done[id(module)] = self.done[id(inner)] = inner
        children = {
            name: None if child is None else self.plain(child, f"{path}.{name}" if path else name)
            for name, child in inner._modules.items()
        }
        compiled = vars(inner).get("_compiled_call_impl") is not None
        if compiled:
            self._note("model.compile()", path)
        if compiled or any(child is not inner._modules[name] for name, child in children.items()):
            inner = copy.copy(inner)  # which leaves out what `compile()` has set
            inner._modules = children
            self.done[id(module)] = inner
        return inner

    def _held(self, module: nn.Module, path: str) -> nn.Module | None:
        """Return the module inside a wrapper such as DDP or a compiled module; None if the module is no wrapper.

        Raises:
            InvalidInputError: the class of module hides its weights, or the wrapper has forward hooks.
        """
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]
        place = f"{self.argument}: {path + ' ' if path else ''}({type(module).__name__})"
        for known, (reason, fix) in _REFUSED.items():
            if any(name == known or (known.endswith(".") and name.startswith(known)) for name in names):
                raise InvalidInputError(f"{place} is {reason}.\n  To fix: {fix}.")
        attribute = next((_TAKEN_OFF[name] for name in names if name in _TAKEN_OFF), None)
        if attribute is None:
            self._refuse_around(module, place)
            return None
        if module._forward_hooks or module._forward_pre_hooks:
            raise InvalidInputError(
                f"{place} is a wrapper with forward hooks of its own, which would be lost when it is taken off.\n"
                f"  To fix: register them on the module in it, .{attribute}."
            )
        held = getattr(module, attribute)
        assert isinstance(held, nn.Module)
        if attribute == "base_model" and not any(
            kind.__module__.startswith("peft.tuners.") for kind in type(held).__mro__
        ):
            raise InvalidInputError(
                f"{place} is a model of peft with a learned prompt or prefix, which its wrapper adds to the inputs.\n"
                "  To fix: give the model within, .get_base_model(); its parameters are frozen."
            )
        self._note(type(module).__name__, path)
        return held

    def _refuse_around(self, module: nn.Module, place: str) -> None:
        """Raise an error for a wrapper of another package than torch: what it does to parameters is not known.

        Args:
            module: a module of the given model.
            place: where the module is, in words, for the message.

        Raises:
            InvalidInputError: the class has the name of such a wrapper, and one module in it.
        """
        attribute = next((_AROUND[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _AROUND), None)
        if attribute is None or list(module._modules) != [attribute]:
            return
        package = type(module).__module__.partition(".")[0]
        raise InvalidInputError(
            f"{place} is a wrapper of {package}, which may change precision and parameters.\n"
            f"  To fix: give the nn.Module in it, .{attribute}, before it is wrapped; wrap result.module."
        )

    def _note(self, name: str, path: str) -> None:
        """Add a wrapper that was taken off to `found`, of which the report is told.

        Args:
            name: class name of the wrapper.
            path: module path of what is in it.

        Raises:
            InvalidInputError: the model object that the user gave will itself be changed, which a wrapper does not
                allow.
        """
        if self.in_place:
            raise InvalidInputError(
                f"{self.argument}: {path or 'the model'} is wrapped ({name}), and apply='inplace' changes the object "
                "that was given.\n"
                "  To fix: give the plain module (._orig_mod, .module), and compile or wrap it after the transform."
            )
        self.found.append((name, path))

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for the report for each class of wrapper (torch.compile, DDP) taken off the model."""
        by_name: dict[str, list[str]] = {}
        for name, path in self.found:
            by_name.setdefault(name, []).append(path or "the model itself")
        return tuple(
            f"{self.argument}: taken without its wrapper {name} (on {', '.join(paths[:_NAMED])}"
            f"{f' and {len(paths) - _NAMED} more' if len(paths) > _NAMED else ''}); parameters have the names of the "
            "module within; wrap the result again"
            for name, paths in by_name.items()
        )


def _refuse_tensors(argument: str, model: nn.Module, on_device: bool) -> None:
    """Raise an error if a parameter or buffer of the model cannot be trained or read.

    Args:
        argument: the option that the model was given for, for the message.
        model: the model.
        on_device: whether values are needed, so that tensors on the meta device are refused.

    Raises:
        InvalidInputError: a tensor was made in inference mode, is a tensor subclass such as DTensor, is quantised, or
            has no values where these are needed.
    """
    for name, tensor in _tensors(model):
        kind, package = type(tensor).__name__, type(tensor).__module__.partition(".")[0]
        if tensor.is_inference():
            reason, fix = "was made under torch.inference_mode() and cannot train", "build the model outside of it"
        elif is_traceable_wrapper_subclass(tensor):
            reason, fix = (
                f"is a {kind}: sharded or quantised",
                "give the plain model, before it is sharded or quantised",
            )
        elif package in _QUANTISERS:
            reason, fix = f"is a {kind} of {package}: quantised", _FLOAT
        elif tensor.is_quantized:
            reason, fix = "is quantised", _FLOAT
        elif on_device and tensor.is_meta:
            reason = "is on the meta device and has no values"
            fix = "build the model on a real device: outside of `with torch.device('meta')`"
        else:
            continue
        raise InvalidInputError(f"{argument}: {name} {reason}.\n  To fix: {fix}.")


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers of a model that have a shape already, by name."""
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter):
            yield name, parameter
    for name, buffer in model.named_buffers():
        if not is_lazy(buffer):
            yield name, buffer
