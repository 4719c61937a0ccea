"""Values of options as they are written on the command line: numbers, words, name=value, by role, choices."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from abcfx.errors import InvalidInputError
from abcfx.support.choices import choose
from abcfx.support.text import shown


def plain_value(text: str) -> object:
    """Read a value of an option: JSON, or True, False and None as Python writes them; any other text is itself."""
    try:
        value: object = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
    return value


def assignments(argument: str, given: str | None) -> dict[str, object]:
    """Read `width=256,kind=small`, or a JSON object, as a dict; {} for no text.

    Args:
        argument: name of the option, which begins error messages.
        given: the text.

    Raises:
        InvalidInputError: the text is neither.
    """
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


def one_or_by_role(argument: str, given: str) -> object:
    """Read an option that has one value, or one for each role: `hidden=muon,default=adamw` becomes a dict.

    Args:
        argument: name of the option, which begins error messages.
        given: the text of the option.
    """
    return assignments(argument, given) if "=" in given or given.startswith("{") else plain_value(given)


def words(argument: str, given: str) -> str | dict[str, str]:
    """Read an option that is one word, or one for each role: `hidden=muon,default=adamw` becomes a dict.

    Args:
        argument: name of the option, which begins error messages.
        given: the text of the option.
    """
    value = one_or_by_role(argument, given)
    return {name: str(word) for name, word in value.items()} if isinstance(value, Mapping) else given


def rates(argument: str, given: str) -> float | dict[str, float]:
    """Read an option that is one number, or one for each role: `hidden=0.02,default=0.01` becomes a dict.

    Args:
        argument: name of the option, which begins error messages.
        given: the text of the option.

    Raises:
        InvalidInputError: there is something else than numbers.
    """
    value = one_or_by_role(argument, given)
    if isinstance(value, Mapping):
        return {name: _number(argument, each) for name, each in value.items()}
    return _number(argument, value)


def number(argument: str, given: str) -> float:
    """Read an option of the command line that is one number.

    Args:
        argument: name of the option, which begins error messages.
        given: the text of the option.

    Raises:
        InvalidInputError: the text is no number.
    """
    return _number(argument, plain_value(given))


def _number(argument: str, value: object) -> float:
    """Return a value of a command-line option as a float.

    Raises:
        InvalidInputError: the value is no number; the message begins with the option's name, `argument`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"{argument}: expected a number, got {value!r}")
    return float(value)


def whole_numbers(text: str) -> list[int]:
    """Read whole numbers that are separated by commas, as "64,128,256", or tell argparse what is wrong."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        expected = "expected whole numbers, separated by commas, as 64,128,256; got"
        raise argparse.ArgumentTypeError(f"{expected} {shown(text)}") from None


def numbers(argument: str, given: str) -> list[float]:
    """Read numbers that are separated by commas, as "0.001,0.002".

    Args:
        argument: name of the option, which begins error messages.
        given: the text of the option.

    Raises:
        InvalidInputError: there is something else than numbers.
    """
    return [number(argument, part.strip()) for part in given.split(",")]


def add_choice(parser: argparse.ArgumentParser, flag: str, choices: Sequence[str], default: str, help: str) -> None:
    """Add an option to a parser whose value is one of a few words, in any case; an error names the nearest one.

    Args:
        parser: the parser of a command.
        flag: name of the option, as "--method".
        choices: the words.
        default: the word that holds if the option is not given.
        help: what the option does, for `--help`.
    """

    def read(text: str) -> str:
        """Read the value of the option, one of a few words, or tell argparse what is wrong."""
        try:
            return choose(flag, text, choices)
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    metavar = f"{{{','.join(choices)}}}"
    parser.add_argument(flag, type=read, default=default, metavar=metavar, help=f"{help} (default: {default})")
