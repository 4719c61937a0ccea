"""Alignment measured while a model trains, and learning rates that follow it."""

from abcfx.dynamic.dynamic_alignment import DynamicAlignment
from abcfx.dynamic.measured import Measured, measure
from abcfx.dynamic.schedules import wsd

__all__ = ["DynamicAlignment", "Measured", "measure", "wsd"]
