"""Files that a user asks to be written: refused by name before anything is computed for them."""

from __future__ import annotations

import os
from pathlib import Path

from abcfx.errors import InvalidInputError
from abcfx.support.text import shown


def writable_folder(option: str, path: Path) -> Path:
    """Make a folder if it is missing, and return it.

    Args:
        option: what the path was given for; it begins the error message.
        path: the user's path.

    Raises:
        InvalidInputError: it cannot be made, since a file of that name is in the way, say.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{option}={str(path)!r}: this folder cannot be made ({error.strerror}).") from error
    return path


def write_text(option: str, path: object, text: str) -> None:
    """Write a text to a file that a user named.

    Args:
        option: what the path was given for; it begins the error message.
        path: the user's path.
        text: the text.

    Raises:
        InvalidInputError: it is no path of a file that can be written.
    """
    found = writable_file(option, path)
    try:
        found.write_text(text, encoding="utf-8")
    except OSError as error:  # no permission, a full disk, a folder in which the system makes the files
        raise InvalidInputError(
            f"{option}={shown(str(found))}: it cannot be written ({error.strerror}).\n  To fix: give another path."
        ) from error


def writable_file(option: str, path: object) -> Path:
    """Return the path of a file to write; it is no symlink, so that nothing is written elsewhere than it says.

    Args:
        option: what the path was given for; it begins the error message.
        path: the user's path.

    Raises:
        InvalidInputError: it is no path, its folder is missing, or it is a folder or a symlink.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"{option}={path!r}: expected the path of a file, got {type(path).__name__}.")
    found = Path(os.fspath(path))
    try:
        os.lstat(found)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte in it
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"{option}={shown(str(found))}: this is no path of a file ({reason}).\n  To fix: {option}='report.html'"
        ) from error
    if found.is_symlink():
        raise InvalidInputError(
            f"{option}={str(found)!r} is a symlink; nothing is written through one.\n"
            f"  To fix: give the file it stands for, {str(found.resolve())!r}."
        )
    if found.is_dir():
        raise InvalidInputError(f"{option}={str(found)!r} is a folder.\n  To fix: give a file in it.")
    if not found.parent.is_dir():
        raise InvalidInputError(
            f"{option}={str(found)!r}: there is no folder {str(found.parent)!r}.\n  To fix: make it, or give another."
        )
    return found
