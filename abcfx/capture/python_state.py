"""Find everything in Python that a model's forward could write into, see what a call of it changed, and undo that.

That is more than the attributes of modules: containers and plain objects in them, attributes of the model's classes,
global variables and closures that its methods use. Random generators among these are listed apart.
"""

from __future__ import annotations

import functools
import types

import torch
from torch import nn

from abcfx.capture.generators import is_generator, set_state, state_of
from abcfx.capture.state_spaces import (
    CONTAINERS,
    MISSING,
    PLAIN,
    TORCHS,
    Attributes,
    Cell,
    Change,
    Container,
    Contents,
    Registry,
    Space,
)

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_LIBRARIES = ("torch", "numpy", "logging", "threading", "abcfx", "builtins")
# How far objects are looked into, and how many items of a container.
_DEPTH = 4
_MANY = 10_000


class Snapshot:
    """A record of the Python state around a model (attributes, globals, closures), to find and undo changes.

    Attributes:
        generators: random generators that the model's methods can reach, by path, apart from the global ones.
        undone: the changes that `restore` has undone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.generators: dict[str, object] = {}
        self.undone: list[Change] = []
        self._generator_states: list[tuple[object, object]] = []
        self._seen: set[int] = set()
        # Most containers of modules are those of hooks, and these are mostly empty.
        self._empty: list[Container] = []
        self._spaces: list[Space] = []
        self._tensors: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        classes: dict[type, None] = {}
        for path, module in model.named_modules():
            self._add_module(path, module)
            classes.update(dict.fromkeys(type(module).__mro__))
        for cls in classes:
            if not _is_library(cls.__module__):
                self._add_class(cls)

    def changes(self) -> list[Change]:
        """Return what differs now from when the snapshot was made, as one `Change` for each attribute."""
        found = [change for space in self._spaces for change in space.changes()]
        return found + [
            Change(path, before, tensor) for path, tensor, before in self._tensors if not same_numbers(tensor, before)
        ]

    def restore(self) -> None:
        """Put all Python state around the model back as it was when the snapshot was made."""
        self.undone += self.changes()
        for space in self._spaces:
            space.restore()
        for container in self._empty:
            if container:
                container.clear()
        for generator, state in self._generator_states:
            set_state(generator, state)
        with torch.no_grad():
            for _, tensor, before in self._tensors:
                if not same_numbers(tensor, before):
                    tensor.detach().copy_(before)

    # What to look at

    def _add_module(self, path: str, module: nn.Module) -> None:
        """Record a module's attributes and, of those that are not torch's own, what they hold."""
        attributes = module.__dict__
        untold = frozenset(weights_of_hooks(module)) if module._forward_pre_hooks else frozenset()
        self._spaces.append(Attributes(path, attributes, untold=untold))
        for name, value in attributes.items():
            if name in TORCHS:
                if name in _REGISTRIES:
                    self._spaces.append(Registry(path, value))
                elif isinstance(value, CONTAINERS) and value:
                    self._spaces.append(Contents("", value))
                elif isinstance(value, CONTAINERS):
                    self._empty.append(value)
            else:
                self._add(f"{path}.{name}".lstrip("."), value, _DEPTH)

    def _add_class(self, cls: type) -> None:
        """Record the attributes of a class that methods could write, and the variables that its methods use."""
        names = {name for name, value in vars(cls).items() if not name.startswith("__") and _is_state(value)}
        self._spaces.append(Attributes(cls.__name__, vars(cls), names, functools.partial(_set_attribute, cls)))
        for name, value in list(vars(cls).items()):
            if name in names:
                self._add(f"{cls.__name__}.{name}", value, _DEPTH)
            else:
                self._add_function(_function_of(value), _DEPTH)

    def _add_function(self, function: types.FunctionType | None, depth: int) -> None:
        """Record the global variables that a function names and the closure variables that it uses.

        `depth` is how many levels of objects are still looked into.
        """
        if function is None or not depth or self._is_known(function) or _is_library(function.__module__ or ""):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._add_cell(f"{function.__qualname__}.{name}", cell, depth)
        namespace = function.__globals__
        names = {name for name in _names(function.__code__) if name in namespace}
        module = str(namespace.get("__name__", ""))
        state = {name for name in names if _is_state(namespace[name])}
        if state:
            self._spaces.append(Attributes(module, namespace, state))
        for name in names:
            self._add(f"{module}.{name}", namespace[name], depth - 1)

    def _add_cell(self, path: str, cell: types.CellType, depth: int) -> None:
        """Record a closure variable of a function, and what its value holds, `depth` levels deep."""
        try:
            value = cell.cell_contents
        except ValueError:  # it is empty
            return
        if not self._is_known(cell) and _is_state(value):
            self._spaces.append(Cell(path, cell))
        self._add(path, value, depth - 1)

    def _add(self, path: str, value: object, depth: int) -> None:
        """Record what a value holds, `depth` levels deep, under a path such as "blocks.0.cache".

        Modules and classes are not looked into.
        """
        if isinstance(value, PLAIN) or not depth or isinstance(value, nn.Module | type | types.ModuleType):
            return
        if isinstance(value, tuple):
            self._add_items(path, value, depth - 1)
        elif isinstance(value, types.FunctionType):
            self._add_function(value, depth)
        elif isinstance(value, functools.partial | types.MethodType):
            self._add(path, value.func if isinstance(value, functools.partial) else value.__func__, depth)
        elif not self._is_known(value):
            self._add_object(path, value, depth)

    def _add_object(self, path: str, value: object, depth: int) -> None:
        """Record what an object holds, by its kind: state of a generator, numbers of a tensor, items, or attributes.

        `depth` is how many levels of objects are still looked into.
        """
        attributes = getattr(value, "__dict__", None)
        if is_generator(value):
            self.generators[path] = value
            self._generator_states.append((value, state_of(value)))
        elif isinstance(value, torch.Tensor):
            if id(value) not in self._registered and not value.is_meta:
                self._tensors.append((path, value, value.detach().clone()))
        elif isinstance(value, CONTAINERS):
            self._spaces.append(Contents(path, value))
            self._add_items(path, value, depth - 1)
        elif isinstance(attributes, dict) and not _is_library(type(value).__module__):
            self._spaces.append(Attributes(path, attributes))
            for name, each in list(attributes.items()):
                self._add(f"{path}.{name}", each, depth - 1)

    def _add_items(self, path: str, values: object, depth: int) -> None:
        """Record what each item of a container or tuple holds, `depth` levels deep, unless there are very many."""
        assert isinstance(values, (*CONTAINERS, tuple))
        if len(values) <= _MANY:
            items = values.items() if isinstance(values, dict) else enumerate(values)
            for key, value in list(items):
                self._add(f"{path}[{key!r}]", value, depth)

    def _is_known(self, value: object) -> bool:
        """Whether this snapshot has looked into the same object before; from now on it counts as looked into."""
        known = id(value) in self._seen
        self._seen.add(id(value))
        return known


def same_numbers(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return True when two tensors hold the same numbers; sparse tensors are compared as dense ones."""
    if left.layout != torch.strided:
        left, right = left.to_dense(), right.to_dense()
    return torch.equal(left, right)


def weights_of_hooks(module: nn.Module) -> dict[str, str]:
    """Return the weights that torch's old weight norm and spectral norm compute before every call of a module.

    They come by name, each with the name of the class of its hook.
    """
    hooks = [each for each in module._forward_pre_hooks.values() if type(each).__module__.startswith("torch.nn.utils.")]
    return {str(getattr(hook, "name", "")): type(hook).__name__ for hook in hooks}


def _is_state(value: object) -> bool:
    """Whether a value of a class, module or closure is one that a method could rebind or fill to remember something."""
    kinds = (*PLAIN, *CONTAINERS, torch.Tensor)
    return isinstance(value, kinds) and not isinstance(value, nn.Module)


def _is_library(module: str) -> bool:
    """Whether a Python module, by its name, belongs to torch or another library, whose state is not the model's."""
    return module.partition(".")[0] in _LIBRARIES


def _function_of(value: object) -> types.FunctionType | None:
    """Return the function behind a method, a property or a decorated function of a class; None for anything else."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = getattr(value, "__wrapped__", value)
    return value if isinstance(value, types.FunctionType) else None


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    """Return the names of globals and attributes that a code object uses, those of functions defined in it included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


def _set_attribute(cls: type, name: str, value: object) -> None:
    """Set an attribute of a class; delete it when the value is `MISSING`."""
    if value is MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, value)
