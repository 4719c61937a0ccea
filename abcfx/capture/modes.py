"""Find out whether train and eval mode of a model run the same operations, by one run of each on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from abcfx.capture.aten import CallLogger
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.randomness import no_hidden_randomness
from abcfx.capture.signature import Signature
from abcfx.capture.state import preserved
from abcfx.support import trees
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode


def modes_agree(model: nn.Module, signature: Signature, examples: Mapping[str, object]) -> bool:
    """Whether train and eval mode run the same ops on the same tensors, so that one graph serves both.

    The two runs cost a small part of an export. Also False if the runs fail, or if batch norm or active dropout already
    shows a difference.

    Args:
        model: the model.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
    """
    if any(map(_differs_by_mode, model.modules())):
        return False
    try:
        with both_modes_restored(model):
            set_mode(model, True)
            train = _operations(model, signature, examples)
            set_mode(model, False)
            return _operations(model, signature, examples) == train
    except Exception:  # the user's forward may raise anything on fake tensors; the export meets it too and explains it
        return False


def _differs_by_mode(module: nn.Module) -> bool:
    """Whether a module is a batch norm or an active dropout, which compute different things in train and eval mode."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)


def _operations(model: nn.Module, signature: Signature, examples: Mapping[str, object]) -> list[tuple[object, str]]:
    """Run a model on fake tensors (shapes without values); return its aten calls and last what it returned.

    Each call comes with its arguments as text, which tells 0.0 from False.

    Args:
        model: the model, in the mode to run.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = trees.map_leaves_of(
        torch.Tensor, lambda tensor: mode.from_tensor(tensor, static_shapes=True), off_meta(dict(examples))
    )
    with preserved(model) as before, preserved_rng():
        replace_weights(model, mode)
        logger = CallLogger(model, copies=True)
        with no_hidden_randomness(before.generators), mode, logger:
            output = signature.call(model, signature.rebuild(fake))
        returned = [logger.refs(leaf) for leaf in trees.leaves(output)]
        calls: list[tuple[object, str]] = [(call.op, repr((call.args, call.kwargs))) for call in logger.trace.calls]
        return [*calls, (None, repr(returned))]
