"""Alignment measured while a model trains, and learning rates that follow it."""

from abcfx.dynamic.measured import Measured, measure
from abcfx.dynamic.rates import DynamicAlignment, wsd

__all__ = ["DynamicAlignment", "Measured", "measure", "wsd"]
