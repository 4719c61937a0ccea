"""The two variants of a model that checks compare: "transformed" by abcfx, or "standard": the user's, unchanged."""

from __future__ import annotations

from typing import Literal, TypeAlias

Variant: TypeAlias = Literal["transformed", "standard"]
TRANSFORMED: Variant = "transformed"
STANDARD: Variant = "standard"
SHOWN: dict[Variant, str] = {TRANSFORMED: "transformed", STANDARD: "as written"}
