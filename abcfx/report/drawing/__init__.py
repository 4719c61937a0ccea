"""Pictures of the layer DAG: boxes, repeated blocks, a layered layout, Mermaid, and the interactive HTML page."""

from abcfx.report.drawing.flowchart import mermaid
from abcfx.report.drawing.html import page

__all__ = ["mermaid", "page"]
