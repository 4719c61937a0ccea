"""Says whether train and eval mode of a model run the same operations, by one run of each on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.signature import Signature
from abcfx.capture.state import both_modes_restored, no_hidden_randomness, preserved, preserved_rng, set_mode
from abcfx.support import trees


def modes_agree(model: nn.Module, signature: Signature, examples: Mapping[str, Any]) -> bool:
    """True when both modes run the same operations on the same tensors, so that one graph serves both.

    Such a run costs a small part of an export. False also when it cannot be made, and where a layer says it without.
    """
    if any(map(_tells_modes_apart, model.modules())):
        return False
    try:
        with both_modes_restored(model):
            set_mode(model, True)
            train = _operations(model, signature, examples)
            set_mode(model, False)
            return _operations(model, signature, examples) == train
    except Exception:  # whatever it is, the export meets it too and explains it
        return False


def _tells_modes_apart(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation with its arguments, tensors by the number of the call that made them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[Any] = []
        # Tensors are kept, so that no id comes twice; fake ones hold no memory.
        self._seen: dict[int, tuple[int, torch.Tensor]] = {}

    def number(self, value: Any) -> Any:
        """A tensor's place in the order of first appearance; other values as text, which tells 0.0 from False."""
        if isinstance(value, torch.Tensor):
            return self._seen.setdefault(id(value), (len(self._seen), value))[0]
        return repr(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim":  # questions about a tensor
            self.entries.append((func, *map(self.number, trees.leaves((args, kwargs or {})))))
        out = func(*args, **(kwargs or {}))
        for leaf in trees.leaves(out):
            self.number(leaf)
        return out


def _operations(model: nn.Module, signature: Signature, examples: Mapping[str, Any]) -> list[Any]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {
        name: mode.from_tensor(value, static_shapes=True) if isinstance(value, torch.Tensor) else value
        for name, value in off_meta(dict(examples)).items()
    }
    with preserved(model), preserved_rng():
        replace_weights(model, mode)
        log = _Log()
        with no_hidden_randomness(), mode, log:
            results = trees.leaves(signature.call(model, signature.rebuild(fake)))
        log.entries.append(tuple(map(log.number, results)))
    return log.entries
