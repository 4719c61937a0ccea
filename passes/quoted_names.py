"""Keep names of modules and parameters from running as code in what torch.fx generates."""

from __future__ import annotations

import keyword
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

# Held while the function is replaced, so that no other thread puts the unsafe one back meanwhile.
_lock = threading.RLock()


def _quoting(base: str, target: str) -> str:
    """Write the Python expression that looks up a dotted path such as "blocks.0.fc" below the expression `base`.

    A part that is no plain identifier is looked up with `getattr` and a string literal, so that it cannot run as code.
    """
    for part in target.split("."):
        plain = part.isascii() and part.isidentifier() and not keyword.iskeyword(part)
        base = f"{base}.{part}" if plain else f"getattr({base}, {part!r})"
    return base


@contextmanager
def quoted_names() -> Iterator[None]:
    """Let torch.fx write names that are no plain Python names as string literals within the block.

    torch.fx itself puts them between quotes as they are, so that the key of a ModuleDict that has a quote in it would
    run as code. The generated code is otherwise the same, also for another thread that generates code meanwhile; one
    that enters such a block itself waits.
    """
    with _lock:
        before = fx.graph._format_target
        try:
            fx.graph._format_target = _quoting
            yield
        finally:
            fx.graph._format_target = before
