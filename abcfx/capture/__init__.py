"""From a PyTorch model to fx graphs over its own parameters."""

from abcfx.capture.captured import CapturedGraph
from abcfx.capture.driver import capture
from abcfx.capture.emitted import EmittedModule

__all__ = ["CapturedGraph", "EmittedModule", "capture"]
