"""The two variants of a model that checks compare: transformed, and as written."""

from __future__ import annotations

from typing import Literal, TypeAlias

Variant: TypeAlias = Literal["transformed", "standard"]
TRANSFORMED: Variant = "transformed"
STANDARD: Variant = "standard"
SHOWN: dict[Variant, str] = {TRANSFORMED: "transformed", STANDARD: "as written"}
