"""Remembers which model objects have been transformed, so that no multiplier and no init factor counts twice."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

# Compared by identity, as modules are; an entry goes when its model does.
_TRANSFORMED: WeakSet[nn.Module] = WeakSet()


def remember_transformed(model: nn.Module) -> None:
    """Add a model object whose weights or graph `transform` changed to a set, off which `was_transformed` reads it.

    The set is a global of this module and holds models weakly.
    """
    _TRANSFORMED.add(model)


def was_transformed(model: nn.Module) -> bool:
    """Whether an earlier `transform` changed this model object, and `fold()` has not made plain weights of it since."""
    return model in _TRANSFORMED


def forget_transformed(model: nn.Module) -> None:
    """Allow a model object to be transformed again, after folding made plain weights of it."""
    _TRANSFORMED.discard(model)
