"""Find modules that fold weights together when they go into eval mode, as LoRA layers do with their two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from abcfx.capture.python_state import same_numbers
from abcfx.capture.state import contents_preserved, preserved
from abcfx.errors import InvalidInputError


@dataclass(frozen=True)
class FoldingModule:
    """A module whose own `train()` or `eval()` writes into weights, as LoRA layers do that merge their factors.

    Attributes:
        path: module path; "" for the model itself.
        kind: name of its class.
        changed: names of the tensors in it that are other ones in eval mode than in train mode.
        made: those of them that are parameters and are there in one of the modes only.
    """

    path: str
    kind: str
    changed: tuple[str, ...]
    made: tuple[str, ...]

    @property
    def place(self) -> str:
        """The module in words, such as "blocks.0 (LoRALinear)", for messages."""
        return f"{self.path or 'the model'} ({self.kind})"

    def holds(self, parameter: str) -> bool:
        """Whether a parameter, given by its name in the model, is inside this module."""
        return not self.path or parameter.startswith(f"{self.path}.")


def folding_modules(model: nn.Module) -> list[FoldingModule]:
    """Return the modules whose `train()` or `eval()` writes into weights; the model is left as it is.

    A tensor counts for the innermost module around it that has a `train` or `eval` of its own.

    Raises:
        InvalidInputError: the model was given in eval mode, so that its weights are folded now.
    """
    kinds = {path: type(module) for path, module in model.named_modules() if _switches(module)}
    if not kinds or not _switching_uses_tensors(model, kinds):
        return []
    given = _tensors(model, kinds)
    with preserved(model), contents_preserved(given.values()):
        before = _copied(given)
        unfolded = _copied(_tensors(model.train(), kinds))
        first = _copied(_tensors(model.eval(), kinds))
        model.train()
        # What eval() makes of other weights shows whether it is made of weights, also where it is up to date now.
        with torch.no_grad():
            for tensor in given.values():
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                    tensor.mul_(2)
        train = _copied(_tensors(model, kinds))
        evaluate = _copied(_tensors(model.eval(), kinds))
    found = []
    for path, kind in kinds.items():
        names = [name for name in {**train, **evaluate} if _innermost(name, kinds) == path]
        changed = [name for name in names if _differ(train, evaluate, name) and _differ(first, evaluate, name)]
        made = [
            name
            for name in changed
            if isinstance(evaluate.get(name, unfolded.get(name)), nn.Parameter)
            and (name in unfolded) != (name in evaluate)
        ]
        if not model.training and any(_differ(before, unfolded, name) for name in changed):
            raise InvalidInputError(
                f"{path or 'the model'} ({kind.__name__}) folds weights together in eval mode ({changed[0]}), and the "
                "model was given in eval mode: init and rates would be those of folded weights.\n"
                "  To fix: model.train() before the transform."
            )
        if changed:
            found.append(FoldingModule(path, kind.__name__, tuple(changed), tuple(made)))
    return found


def refuse_unfollowed(model: nn.Module) -> None:
    """Raise an error for a model whose modes (train and eval) no graph can follow.

    Such are models whose own `train` changes weights, or with a module that has some parameter in one mode only.

    Raises:
        InvalidInputError: names the module and the parameter.
    """
    for each in folding_modules(model):
        if not each.path:
            raise InvalidInputError(
                f"{each.place} has a train() or eval() that changes {each.changed[0]}, and no graph calls it: the "
                "result would compute something else in eval mode.\n"
                "  To fix: apply='inplace', which keeps the model's own train() and eval()."
            )
        if each.made:
            raise InvalidInputError(
                f"{each.place} has the parameter {each.made[0]} in one of train and eval mode only.\n"
                "  expected: the same parameters in both modes.\n"
                "  To fix: apply='inplace', which keeps the model's own forward; or let eval() make a buffer of it."
            )


def own_modes(model: nn.Module) -> dict[bool, dict[str, bool]]:
    """Return the modes that a `train` of the model's own class gives to its modules, as where it keeps a norm frozen.

    Returns:
        For `train(True)` and `train(False)`, the path of each module that is then in the other mode, and that mode;
        empty if the class has no `train` of its own.
    """
    if not _switches(model):
        return {}
    found: dict[bool, dict[str, bool]] = {}
    at_risk = [*model.parameters(), *model.buffers()] if _switching_uses_tensors(model, {"": type(model)}) else []
    with preserved(model), contents_preserved(at_risk):
        for mode in (True, False):
            model.train(mode)
            found[mode] = {path: each.training for path, each in model.named_modules() if each.training is not mode}
    return found


def _switches(module: nn.Module) -> bool:
    """Whether a module's class has a `train` or `eval` of its own, which is not torch's."""
    methods = (getattr(type(module), name) for name in ("train", "eval"))
    return any(not (method.__module__ or "").startswith(("torch.", "abcfx.")) for method in methods)


class _OpTriedError(Exception):
    """A function of torch was called on a tensor, or would have made one."""


class _NoOps(TorchFunctionMode):
    """A mode of torch under which every function of torch raises an error before it does anything.

    Attributes:
        tried: whether a function was called; the error that it raised may have been caught.
    """

    tried = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Set `tried` and raise the error instead of a call; torch calls this method for each of its functions."""
        self.tried = True
        raise _OpTriedError


def _switching_uses_tensors(model: nn.Module, within: dict[str, type]) -> bool:
    """Whether `train()` or `eval()` of a model computes with tensors, reads one or puts another one in its place.

    Most change flags alone, and then nothing needs to be copied, which for all weights would take as long as a tenth
    of a capture. No function of torch runs here; the model is left as it is.

    Args:
        model: the model.
        within: paths of the modules whose tensors may be replaced.
    """
    before, mode = _tensors(model, within), _NoOps()
    with preserved(model):
        for switch in (model.train, model.eval, model.train):
            try:
                with mode:
                    switch()
            except Exception:  # the model's own train() may turn the error of the mode into any other
                if not mode.tried:
                    raise
            after = _tensors(model, within)
            if mode.tried or after.keys() != before.keys() or any(after[name] is not before[name] for name in before):
                return True
    return False


def _tensors(model: nn.Module, within: dict[str, type]) -> dict[str, torch.Tensor]:
    """Return the tensors of some modules, those in plain attributes included, by their names in the model.

    Args:
        model: the model.
        within: paths of the modules; tensors of modules inside them count as well.
    """
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for attributes in (module._parameters, module._buffers, vars(module)):
            for key, value in attributes.items():
                name = f"{path}.{key}".lstrip(".")
                if isinstance(value, torch.Tensor) and not value.is_meta and _innermost(name, within) is not None:
                    found[name] = value
    return found


def _innermost(name: str, paths: dict[str, type]) -> str | None:
    """Return the longest of some module paths that contains a tensor, given by its name; None if none does."""
    around = [path for path in paths if not path or name.startswith(f"{path}.")]
    return max(around, key=len, default=None)


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of tensors by name; parameters are copied as parameters."""
    return {
        name: nn.Parameter(tensor.detach().clone(), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach().clone()
        for name, tensor in tensors.items()
    }


def _differ(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], name: str) -> bool:
    """Whether a tensor, by its name, exists in only one of two modes (train and eval), or has other values in them.

    `left` and `right` are the model's tensors by name in the two modes.
    """
    if name not in left or name not in right:
        return (name in left) != (name in right)
    return left[name].shape != right[name].shape or not same_numbers(left[name], right[name])
