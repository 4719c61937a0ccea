"""Arguments of public functions, checked by one decorator before the function does anything."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from abcfx.errors import AbcfxError, InvalidInputError
from abcfx.support.location import user_line
from abcfx.support.numbers import check_number, check_whole
from abcfx.support.text import shown

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, object], object]
"""A function of an argument's name and value that raises an InvalidInputError for a wrong value."""


def checked(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks arguments whenever the function is called: that it takes them, and their values.

    Defaults are taken to be right. A misspelt keyword argument is refused with the name that is nearest to it.

    Args:
        checks: by the argument's name, its check: a function of (name, value) that raises an InvalidInputError for a
            wrong value.

    >>> @checked(steps=whole(at_least=1))
    ... def train(steps):
    ...     return steps
    >>> train(3)
    3
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with its arguments checked."""
        signature = inspect.signature(function)
        names = list(signature.parameters)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise _unfit(function.__name__, str(error), names, kwargs) from None
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            for name, check in checks.items():
                if name in given:
                    check(name, given[name])
            return function(*args, **kwargs)

        return call

    return decorate


def _unfit(function: str, reason: str, names: Collection[str], keywords: Collection[str]) -> InvalidInputError:
    """Make the error for a call whose arguments a function does not take.

    Args:
        function: its name.
        reason: what Python says of the call.
        names: names of the function's arguments.
        keywords: names of the keyword arguments of the call.
    """
    message = f"{function}: {reason}.\n  Expected arguments: {', '.join(names)}."
    for keyword in keywords:
        if keyword not in names and (nearest := get_close_matches(keyword, names, n=1)):
            message += f"\n  To fix: {nearest[0]}= in place of {keyword}="
    return InvalidInputError(message)


def optional(check: Check) -> Check:
    """Return a check, a function of an argument's name and value, that lets None pass, else does what `check` does."""

    def allow_none(option: str, value: object) -> None:
        """Call the outer `check` with the argument's name and value, unless the value is None."""
        if value is not None:
            check(option, value)

    return allow_none


def whole(at_least: int = 1) -> Check:
    """Return a function of an argument's name and value that raises unless it is a whole number >= `at_least`."""
    return partial(check_whole, at_least=at_least)


def number(*, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf) -> Check:
    """Return a function of an argument's name and value that raises unless it is a finite number in these limits."""
    return partial(check_number, at_least=at_least, above=above, at_most=at_most)


def instance_of(kind: type, expected: str) -> Check:
    """Return a function of an argument's name and value that raises unless the value is an instance of a class.

    Args:
        kind: the class.
        expected: what the error says that it should be, such as "a module".
    """

    def check(option: str, value: object) -> None:
        """Raise an InvalidInputError unless the value of the argument `option` is an instance of the class."""
        if not isinstance(value, kind):
            raise wrong(option, value, expected)

    return check


seed: Check = whole(at_least=-(2**63))
flag: Check = instance_of(bool, "True or False")
text: Check = instance_of(str, "text")
module: Check = instance_of(nn.Module, "a module (an instance)")
optimizer: Check = instance_of(torch.optim.Optimizer, "an instance of a torch optimizer")


def function(option: str, value: object) -> None:
    """Raise an error unless the value of the argument `option` can be called.

    Raises:
        InvalidInputError: it cannot be called.
    """
    if not callable(value):
        raise wrong(option, value, "a function")


def words(option: str, value: object) -> None:
    """Raise an error unless the value of the argument `option` is a collection of strings that is not empty.

    Raises:
        InvalidInputError: it is a single string, is something else than a collection of strings, or is empty.
    """
    if isinstance(value, str | torch.Tensor) or not isinstance(value, Collection):
        raise wrong(option, value, "a list of words", f"{option}=[{value!r}]" if isinstance(value, str) else "")
    for each in value:
        if not isinstance(each, str):
            raise wrong(f"{option}: each", each, "a word")
    if not value:
        raise InvalidInputError(f"{option}: expected at least one word, got none.")


def keywords(option: str, value: object) -> None:
    """Raise an error unless the value of the argument `option` is None or a dict of keyword inputs by name.

    Raises:
        InvalidInputError: it is something else, such as a second positional input, or a key is no string.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InvalidInputError(
            f"{option}: expected a dict of keyword inputs, got {type(value).__name__}.\n"
            f"  To fix: several positional inputs are given as one tuple: transform(model, (x, y))"
        )
    for key in value or {}:
        if not isinstance(key, str):
            raise wrong(f"{option}: key {key!r}", key, "the name of an input")


def tensor(dims: int = 0, *, square: bool = False, floating: bool = True) -> Check:
    """Return a function of an argument's name and value that raises unless the value is a tensor with entries.

    A tensor on the meta device, which has no values, is refused, too.

    Args:
        dims: the least number of dims.
        square: whether its last two dims have to be of one size.
        floating: whether it has to hold floating-point numbers.
    """

    def check(option: str, value: object) -> None:
        """Raise an InvalidInputError unless the value is such a tensor; a torch.fx.Proxy has no shape, and passes."""
        if isinstance(value, torch.fx.Proxy):
            return
        expected = f"a {'floating-point ' * floating}tensor of at least {dims} dims" + (
            ", the last two of one size" if square else ""
        )
        if (
            not isinstance(value, torch.Tensor)
            or (floating and not value.is_floating_point())
            or value.is_meta
            or value.layout is not torch.strided
            or value.ndim < dims
            or not value.numel()
            or (square and value.shape[-1] != value.shape[-2])
        ):
            raise wrong(option, value, expected)

    return check


def wrong(option: str, value: object, expected: str, fix: str = "") -> InvalidInputError:
    """Make the error for a wrong value of an argument.

    Args:
        option: name of the argument; it begins the message.
        value: the user's value.
        expected: what it should be.
        fix: what to write instead, if that is known.
    """
    if isinstance(value, torch.Tensor):
        got = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" + (" on the meta device" * value.is_meta)
        got += f" in the layout {value.layout}" * (value.layout is not torch.strided)
    elif isinstance(value, type):
        got = f"the class {value.__name__}"
    elif value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        got = shown(value)
    elif isinstance(value, tuple | list):
        got = f"a {type(value).__name__} of {len(value)}"
    else:
        got = f"a value of type {type(value).__name__}"
    return InvalidInputError(f"{option}: expected {expected}, got {got}." + (f"\n  To fix: {fix}" if fix else ""))


@contextmanager
def run_on(argument: str, model: object) -> Iterator[None]:
    """Turn an error that a user's model raises on its first run within the block into one that names the inputs.

    Args:
        argument: the option that the inputs were given for.
        model: the model, for the message.

    Raises:
        InvalidInputError: the model raised anything but an error of abcfx.
    """
    try:
        yield
    except AbcfxError:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise InvalidInputError(
            f"{argument}: {type(model).__name__} does not run on it: {type(error).__name__}: {error}\n"
            f"  To fix: give inputs as its forward takes them: one tensor, a tuple, or a dict of keyword inputs."
        ) from error


@contextmanager
def calling(argument: str, function: object) -> Iterator[None]:
    """Turn an error from within a function that a user gave into one that names the argument; it stays the cause.

    Args:
        argument: the option that the function was given for.
        function: the function, or the text that stands for it, for the message.

    Raises:
        InvalidInputError: the block raised anything but an error of abcfx.
    """
    try:
        yield
    except AbcfxError:
        raise
    except Exception as error:  # a user's function may raise anything
        name = repr(function) if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
        line = user_line(error.__traceback__)
        where = f"\n  To fix: {line}" if line else ""
        raise InvalidInputError(f"{argument}: {name} raises {type(error).__name__}: {error}{where}") from error


def refuse_call(argument: str, function: Callable[..., object], expected: str, *args: object) -> None:
    """Refuse a function that cannot be called with these positional arguments.

    Args:
        argument: the option that the function was given for.
        function: the function.
        expected: what it should be, for the message.
        args: the arguments.

    Raises:
        InvalidInputError: its signature does not take them.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        raise InvalidInputError(f"{argument}: expected {expected}: {error}.") from None
