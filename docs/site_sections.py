"""An extension of Griffe: docstrings of abcfx have "Main arguments", "Other arguments" and "Example" as sections."""

from __future__ import annotations

import re

import griffe

_SECTIONS = {
    re.compile(r"^Main arguments:$", re.M): "Args: Main arguments",
    re.compile(r"^Other arguments:$", re.M): "Other args: Other arguments",
    re.compile(r"^Example:$", re.M): "Examples: Example",
}


class Sections(griffe.Extension):
    """Gives the sections the names by which Griffe knows them, and keeps ours as their titles."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            for section, known in _SECTIONS.items():
                obj.docstring.value = section.sub(known, obj.docstring.value)
