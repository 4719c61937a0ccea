"""A package's public names, imported from their modules when they are first asked for."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]], rooms: Sequence[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` for a package whose public names are imported when first asked for.

    Args:
        package: full name of the package.
        names: the public names that each module below the package holds, by the module's name.
        rooms: subpackages that are reached as attributes without being imported first.

    Returns:
        The three, to be assigned in the package's `__init__`. `__version__` is among the names.
    """
    module_of = {name: module for module, held in names.items() for name in held}

    def get(name: str) -> object:
        """Import the module that holds a public name of the package, and return what the name stands for."""
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version(package)
        if name in module_of:
            return getattr(_imported(f"{package}.{module_of[name]}"), name)
        if name in rooms:
            return _imported(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    public = sorted([*module_of, "__version__"])
    return get, lambda: list(public), public


def _imported(module: str) -> ModuleType:
    """Import a module without a change of Python's random state, from which some modules (rich) draw when imported."""
    state = random.getstate()
    found = importlib.import_module(module)
    random.setstate(state)
    return found
