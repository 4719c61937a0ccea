"""Models, inputs and options named on the command line: MODULE:FACTORY, FILE.py:FACTORY, name=value."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from abcfx.errors import InvalidInputError

FORMS = "MODULE:FACTORY or FILE.py:FACTORY, as models.py:make_gpt or 'models.py:GPT(width=256)'"
_PLACE = re.compile(r"(?P<place>.*\.py|[A-Za-z_][\w.]*):(?P<expression>.+)", re.S)
SEED = 0


class Named:
    """What stands behind MODULE:EXPRESSION.

    The expression (a name, a dotted name, a call) is evaluated in its module, where `torch` is known too. One without a
    place is evaluated in that of `beside`.
    """

    module: ModuleType

    def __init__(self, argument: str, given: str, beside: Named | None = None) -> None:
        self.argument, self.given = argument, given
        found = _PLACE.fullmatch(given)
        if found is None and beside is None:
            raise InvalidInputError(f"{argument}: {given!r} names no place.\n  expected: {FORMS}")
        self.module = _import(argument, found["place"]) if found else beside.module if beside else ModuleType("")
        self.expression = found["expression"] if found else given

    def value(self) -> Any:
        """Raises InvalidInputError for a name that is not there; other errors are those of the user's own code."""
        known = {"torch": torch, **vars(self.module)}
        first = re.match(r"[A-Za-z_]\w*", self.expression)
        if first and first[0] not in known and not hasattr(builtins, first[0]) and not iskeyword(first[0]):
            public = [name for name in vars(self.module) if not name.startswith("_")]
            close = get_close_matches(first[0], public, n=3) or public[-3:]
            raise InvalidInputError(
                f"{self.argument}: {self.module.__name__} has no {first[0]!r}.\n"
                f"  Names that are close: {', '.join(close)}."
            )
        try:
            code = compile(self.expression, f"<{self.argument}>", "eval")
        except SyntaxError as error:
            raise InvalidInputError(f"{self.argument}: {self.expression!r} is no expression: {error.msg}") from None
        return eval(code, known)

    def build(self, kwargs: Mapping[str, Any]) -> nn.Module:
        """The module, or what the factory returns for `kwargs`; from the same seed each time."""
        torch.manual_seed(SEED)
        built = self.value()
        if not isinstance(built, nn.Module) and callable(built):
            _check_call(self, built, kwargs)
            torch.manual_seed(SEED)
            built = built(**kwargs)
        elif kwargs:
            raise InvalidInputError(
                f"{self.argument}: {self.given!r} is a module already; it takes no keyword arguments"
            )
        if not isinstance(built, nn.Module):
            raise InvalidInputError(
                f"{self.argument}: {self.given!r} gives a {type(built).__name__}, expected a module"
            )
        return built


def _check_call(named: Named, factory: Any, kwargs: Mapping[str, Any]) -> None:
    flag = "--base-kwargs" if named.argument == "--base" else "--kwargs"
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise InvalidInputError(
            f"{named.argument}: {named.given!r} cannot be called so: {error}.\n"
            f"  To fix: {flag} name=value,... or write the call, '{named.given}(...)'"
        ) from None
    except ValueError:  # a builtin without a signature
        return


def _import(argument: str, place: str) -> ModuleType:
    """A module by its name, or a Python file; its folder, or the current one, is where its own imports start."""
    folder = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # of something that the user's module imports
            raise InvalidInputError(f"{argument}: there is no module {place!r}.\n  expected: {FORMS}") from None
    path = Path(place)
    if not path.is_file():
        raise InvalidInputError(f"{argument}: there is no file {place}.\n  expected: {FORMS}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look it up
    spec.loader.exec_module(module)
    return module


def load_weights(argument: str, model: nn.Module, file: Path) -> None:
    """Loads a state_dict, all of it; raises InvalidInputError where it is none of this model."""
    if not file.is_file():
        raise InvalidInputError(f"{argument}: there is no file {file}.")
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise InvalidInputError(
            f"{argument}: {file} holds a {type(state).__name__}, expected a state_dict.\n"
            f"  To fix: torch.save(model.state_dict(), {str(file)!r})"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInputError(f"{argument}: {file} has other tensors than {type(model).__name__}. {error}") from None


def example_inputs(named: Named | None) -> tuple[Any, dict[str, Any] | None]:
    """(args, kwargs) out of a tensor, a tuple of positional inputs, a dict of keyword inputs, or what returns one."""
    if named is None:
        return None, None
    torch.manual_seed(SEED)
    value = named.value()
    value = value() if callable(value) and not isinstance(value, torch.Tensor | nn.Module) else value
    return (None, dict(value)) if isinstance(value, Mapping) else (value, None)


def assignments(argument: str, given: str | None) -> dict[str, Any]:
    """`width=256,kind=small` or a JSON object; values are JSON where they can be read so, else text."""
    if not given:
        return {}
    if given.lstrip().startswith("{"):
        try:
            return dict(json.loads(given))
        except ValueError as error:
            raise InvalidInputError(f"{argument}: {given!r} is no JSON object: {error}") from None
    found = {}
    for part in given.split(","):
        name, equals, text = part.partition("=")
        if not equals or not name.strip():
            raise InvalidInputError(f"{argument}: expected name=value,... or a JSON object; got {part!r}")
        found[name.strip()] = plain_value(text.strip())
    return found


def plain_value(text: str) -> Any:
    """JSON where it is, text otherwise; True, False and None as Python writes them."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def one_or_by_role(argument: str, given: str) -> Any:
    """`adamw`, or `hidden=muon,default=adamw` as a dict."""
    return assignments(argument, given) if "=" in given or given.startswith("{") else plain_value(given)
