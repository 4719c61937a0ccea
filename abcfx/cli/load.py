"""Models, inputs and functions named on the command line: MODULE:FACTORY or FILE.py:FACTORY."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import nn

from abcfx.capture.given_models import given_model
from abcfx.capture.state_mark import has_mark
from abcfx.errors import InvalidInputError
from abcfx.support.arguments import calling
from abcfx.support.batch_loss import Loss
from abcfx.support.location import user_line

FORMS = "MODULE:FACTORY or FILE.py:FACTORY, as models.py:make_gpt or 'models.py:GPT(width=256)'"
_PLACE = re.compile(r"(?P<place>.*\.py|[A-Za-z_][\w.]*):(?P<expression>.+)", re.S)
SEED = 0


class Named:
    """A Python expression on the command line, with the module in which it is evaluated.

    Attributes:
        argument: the option that it was given for; it begins error messages.
        given: the text as the user wrote it, such as "models.py:GPT(width=256)".
        module: the imported module.
        expression: the part behind the colon.
    """

    def __init__(self, argument: str, given: str, beside: Named | None = None) -> None:
        """Import the module that an expression on the command line names before its colon.

        Args:
            argument: the option that the expression was given for; it begins error messages.
            given: MODULE:EXPRESSION; the expression is a name, a dotted name or a call. `torch` is known in it too.
            beside: an expression whose module is taken where `given` names none.

        Raises:
            InvalidInputError: there is no such module or file, or none was named.
        """
        self.argument, self.given = argument, given
        found = _PLACE.fullmatch(given)
        if found is not None:
            self.module, self.expression = _import(argument, found["place"]), found["expression"]
        elif beside is not None:
            self.module, self.expression = beside.module, given
        else:
            raise InvalidInputError(f"{argument}: {given!r} names no place.\n  expected: {FORMS}")

    def value(self) -> object:
        """Evaluate the expression that was given on the command line in its module, and return the value.

        Raises:
            InvalidInputError: the expression has a name that is not there; and whatever the user's own code raises.
        """
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
        with calling(self.argument, self.given):
            value: object = eval(code, known)
        return value

    def loss(self) -> Loss:
        """Evaluate the expression, which is to be a function of (output, batch), and return the function.

        Raises:
            InvalidInputError: it is no function.
        """
        value = self.value()
        if not callable(value):
            raise InvalidInputError(f"{self.argument}: {self.given!r} is no function of (output, batch).")
        return cast(Loss, value)

    def build(self, kwargs: Mapping[str, object]) -> nn.Module:
        """Return the model that the expression stands for: a module, or what a function returns for `kwargs`.

        The model is built from the same seed each time.

        Raises:
            InvalidInputError: the expression gives no module, or the function does not take these arguments.
        """
        torch.manual_seed(SEED)
        built = self.value()
        if not isinstance(built, nn.Module) and callable(built):
            _check_call(self, built, kwargs)
            torch.manual_seed(SEED)
            with calling(self.argument, self.given):
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


def _check_call(named: Named, factory: Callable[..., object], kwargs: Mapping[str, object]) -> None:
    """Refuse keyword arguments that a function which builds a model does not take.

    Args:
        named: the expression for the function, for messages.
        factory: the function.
        kwargs: the keyword arguments.

    Raises:
        InvalidInputError: names the arguments, and the option to write.
    """
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
    """Import a module by its name, or a Python file by its path, and return it.

    Its own imports are looked up in its folder, or for a name in the current one.

    Args:
        argument: the option that names it; it begins error messages.
        place: "package.module" or "folder/file.py".

    Raises:
        InvalidInputError: there is no such module or file, or it raises an error.
    """
    folder = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise _import_failed(argument, place, error) from error  # it imports something that is missing
            raise InvalidInputError(f"{argument}: there is no module {place!r}.\n  expected: {FORMS}") from None
        except Exception as error:  # the user's module may raise anything
            raise _import_failed(argument, place, error) from error
    path = Path(place)
    if not path.is_file():
        raise InvalidInputError(f"{argument}: there is no file {place}.\n  expected: {FORMS}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise _import_failed(argument, place, error) from error
    return module


def _import_failed(argument: str, place: str, error: Exception) -> InvalidInputError:
    """Return the error that a user's module or file raised while it was imported, with the line if it is known."""
    line = user_line(error.__traceback__)
    where = f"\n    {line}" if line else ""
    return InvalidInputError(f"{argument}: importing {place} raises {type(error).__name__}: {error}{where}")


def load_weights(argument: str, model: nn.Module, file: Path) -> None:
    """Load a state_dict from a file into a model; it has to fit exactly.

    Args:
        argument: the option that names the file; it begins error messages.
        model: the model.
        file: the file.

    Raises:
        InvalidInputError: there is no such file, or the state_dict in it is another model's, or that of a transformed
            one whose graph multiplies weights.
    """
    if not file.is_file():
        raise InvalidInputError(f"{argument}: there is no file {file}.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is cut, or no such file at all, raises anything from within pickle
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise InvalidInputError(
            f"{argument}: {file} cannot be read as a state_dict ({type(error).__name__}: {first}).\n"
            f"  To fix: torch.save(model.state_dict(), {str(file)!r})"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InvalidInputError(
            f"{argument}: {file} holds a {type(state).__name__}, expected a state_dict.\n"
            f"  To fix: torch.save(model.state_dict(), {str(file)!r})"
        )
    if has_mark(state):
        raise InvalidInputError(
            f"{argument}: {file} holds weights that the graph of a transformed module multiplies, which "
            f"{type(model).__name__} does not.\n  To fix: torch.save(result.fold().state_dict(), {str(file)!r})"
        )
    try:
        given_model(argument, model).model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInputError(f"{argument}: {file} has other tensors than {type(model).__name__}. {error}") from None


def example_inputs(named: Named | None) -> tuple[object, dict[str, object] | None]:
    """Return the example inputs, positional and by keyword, that an expression stands for; (None, None) for None.

    It stands for a tensor, a tuple of positional inputs, a dict of keyword inputs, or a function that returns one of
    these.
    """
    if named is None:
        return None, None
    torch.manual_seed(SEED)
    value = named.value()
    value = value() if callable(value) and not isinstance(value, torch.Tensor | nn.Module) else value
    return (None, dict(value)) if isinstance(value, Mapping) else (value, None)
