"""Turn a PyTorch model into fx graphs over its own parameters.

`capture` (in `driver`) tries three ways in turn and checks each result against the model (`verify`) before using it:
`symbolic` (torch.fx tracing), `export` (torch.export) and `record` (torch calls written down while the model runs).
"""

from abcfx.capture.captured import CapturedGraph
from abcfx.capture.driver import capture
from abcfx.capture.emitted import EmittedModule

__all__ = ["CapturedGraph", "EmittedModule", "capture"]
