"""Keep what stands in a namespace or a container, tell what has changed in it since, and put it back."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import fx, nn

# Containers that code fills and empties.
CONTAINERS = (list, dict, set, deque)
Container = list[object] | dict[object, object] | set[object] | deque[object]
# Values that are compared by what they are.
PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Attributes by which torch makes a module work. They are restored, and a change in them is no state of the user's,
# apart from tensors and modules that forward registers.
TORCHS = frozenset(vars(nn.Module()))
# Tracing stores constants on the model under names that begin so.
_OF_FX = ("_tensor_constant", "_opaque_obj")


class Missing:
    """The type of `MISSING`, which stands for the value of an attribute that does not exist."""

    def __repr__(self) -> str:
        return "not set"


MISSING = Missing()


@dataclass(frozen=True)
class Change:
    """One attribute or container in Python that a call of a model left other than it was.

    Attributes:
        path: where the attribute is: "blocks.0.calls", "Net.calls" of a class, "file.COUNT" of a global variable.
        before: the value before the call, `MISSING` if there was none; of containers a copy.
        after: the value after the call.
        assign: gives the attribute another value; None for contents of containers and tensors.
    """

    path: str
    before: object
    after: object
    assign: Callable[[object], None] | None = None

    @property
    def name(self) -> str:
        """The changed attribute's own name, without the path."""
        return self.path.rpartition(".")[2]

    def in_words(self) -> str:
        """Describe in a few words what the attribute was before and after the call."""
        return f"{_in_words(self.before)} before a call, {_in_words(self.after)} after it"

    @property
    def is_number(self) -> bool:
        """Whether a number was changed to another number, as a counter of calls is."""
        kinds = (int, float)
        return all(isinstance(value, kinds) and not isinstance(value, bool) for value in (self.before, self.after))


class Attributes:
    """A record of the attributes of an object, or of some variables of a namespace, to find and undo changes.

    Args:
        path: where the object is in the model; begins the paths of changes.
        namespace: holds the values by name, as `__dict__` does.
        names: those to look at; None for all.
        assign: sets a name to a value, or removes it for `MISSING`; None for an item of the namespace.
        untold: names that are restored, but whose changes are not reported.
    """

    def __init__(
        self,
        path: str,
        namespace: Mapping[str, object],
        names: set[str] | None = None,
        assign: Callable[[str, object], None] | None = None,
        untold: frozenset[str] = frozenset(),
    ) -> None:
        self.path, self.namespace, self.names = path, namespace, names
        self.untold = untold | TORCHS
        self.assign = assign or self._set_item
        self.before = self._now()

    def changes(self) -> Iterator[Change]:
        """Yield a change for each attribute or variable whose value differs from the recorded one."""
        now = self._now()
        for name in dict.fromkeys((*self.before, *now)):
            before, after = self.before.get(name, MISSING), now.get(name, MISSING)
            if name not in self.untold and not name.startswith(_OF_FX) and not _alike(before, after):
                path = f"{self.path}.{name}".lstrip(".")
                yield Change(path, before, after, functools.partial(self.assign, name))

    def restore(self) -> None:
        """Put the recorded values of the attributes back."""
        now = self._now()
        for name in (*now, *(name for name in self.before if name not in now)):
            if name not in self.before or now.get(name, MISSING) is not self.before[name]:
                self.assign(name, self.before.get(name, MISSING))

    def _now(self) -> dict[str, object]:
        """Return the present values, by name, of the attributes that are recorded."""
        if self.names is None:
            return dict(self.namespace)
        return {name: self.namespace[name] for name in self.names if name in self.namespace}

    def _set_item(self, name: str, value: object) -> None:
        """Set a variable of the recorded namespace to a value; remove it when the value is `MISSING`."""
        assert isinstance(self.namespace, MutableMapping)
        if value is MISSING:
            self.namespace.pop(name, None)
        else:
            self.namespace[name] = value


class Cell:
    """A record of a closure variable, to find and undo a change."""

    def __init__(self, path: str, cell: types.CellType) -> None:
        self.path, self.cell, self.before = path, cell, cell.cell_contents

    def changes(self) -> Iterator[Change]:
        """Yield a change if the closure variable's value differs from the recorded one."""
        if not _alike(self.before, self.cell.cell_contents):
            yield Change(self.path, self.before, self.cell.cell_contents, self._assign)

    def restore(self) -> None:
        """Put the recorded value of the closure variable back."""
        self._assign(self.before)

    def _assign(self, value: object) -> None:
        """Give the closure variable a value."""
        self.cell.cell_contents = value


class Contents:
    """A record of the contents of a container, to find and undo changes.

    A path of "" is for a container that is restored, and whose changes are not reported.
    """

    def __init__(self, path: str, container: Container) -> None:
        self.path, self.container = path, container
        self.keys, self.values = _contents(container)

    def changes(self) -> Iterator[Change]:
        """Yield one change of the whole container, if anything in it differs from the record."""
        if self.path and not self._is_unchanged():
            yield Change(self.path, self.values, _contents(self.container)[1])

    def restore(self) -> None:
        """Put the recorded contents of the container back."""
        if self._is_unchanged():
            return
        self.container.clear()
        if isinstance(self.container, dict):
            self.container.update(zip(self.keys, self.values, strict=True))
        elif isinstance(self.container, set):
            self.container.update(self.values)
        else:
            self.container.extend(self.values)

    def _is_unchanged(self) -> bool:
        """Whether the container still holds the recorded keys and values, or equal ones, in the same order."""
        keys, values = _contents(self.container)
        same_size = len(keys) == len(self.keys)
        return same_size and all(map(_alike, keys, self.keys)) and all(map(_alike, values, self.values))


class Registry(Contents):
    """A record of the tensors or modules that a module has registered; only what forward adds to them is reported."""

    def changes(self) -> Iterator[Change]:
        """Yield a change for each tensor or module whose name was not registered before."""
        for name, value in zip(*_contents(self.container), strict=True):
            if name not in self.keys:
                yield Change(f"{self.path}.{name}".lstrip("."), MISSING, value)


Space = Attributes | Cell | Contents


def _in_words(value: object) -> str:
    """Describe a value in a message: a short plain one as it is, a container by its length, others by type."""
    if isinstance(value, Missing) or (isinstance(value, PLAIN) and len(repr(value)) < 40):
        return repr(value)
    if isinstance(value, (*CONTAINERS, tuple)):
        return f"{len(value)} {'item' if len(value) == 1 else 'items'}"
    return "a tensor" if isinstance(value, (torch.Tensor, fx.Proxy)) else f"a {type(value).__name__}"


def _contents(container: Container) -> tuple[list[object], list[object]]:
    """Return keys and values of a dict; of any other container, its values as both."""
    return list(container), list(container.values()) if isinstance(container, dict) else list(container)


def _alike(left: object, right: object) -> bool:
    """Whether two values are one object, equal plain values (a nan equals itself here), or containers of such."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        # torch.export puts copies in the place of a module's own containers.
        return all(
            len(ours) == len(theirs) and all(map(_alike, ours, theirs))
            for ours, theirs in zip(_contents(left), _contents(right), strict=True)
        )
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_alike, left, right))
    return isinstance(left, PLAIN) and bool(left == right or (left != left and right != right))
