"""Where a graph node comes from, in words: module path, source file, line and text, for every error message."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<text>[^\n]*)')
_HIDDEN = (
    os.path.normpath(os.path.dirname(torch.__file__)) + os.sep,
    os.path.join(os.path.normpath(os.path.dirname(os.path.dirname(__file__))), "capture") + os.sep,
    contextlib.__file__,
)


def is_user_file(filename: str) -> bool:
    """True for source that a user could edit: not torch, not this package's own capture, not generated code."""
    return not (filename.startswith("<") or os.path.normpath(filename).startswith(_HIDDEN))


def module_path(node: fx.Node) -> str:
    """The innermost module whose forward created the node, as `model.get_submodule` takes it; "" is the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
    # torch.export names modules relative to a wrapper it calls `L['self']`.
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def source_line(stack_trace: str | None) -> str:
    """`file.py:12: text` of the innermost user frame of a recorded stack trace; "" when there is none."""
    frames = list(_FRAME.finditer(stack_trace or ""))
    for frame in [f for f in frames if is_user_file(f["file"])][::-1] or frames[::-1]:
        return f"{os.path.basename(frame['file'])}:{frame['line']}: {frame['text'].strip()}"
    return ""


def location(node: fx.Node) -> str:
    """The node's module path and source line, as `blocks.0.attn (model.py:31: y = att @ v)`."""
    path = module_path(node) or "the model's own forward"
    if node.op in ("placeholder", "get_attr"):
        path = f"argument {node.target!r}" if node.op == "placeholder" else str(node.target)
    line = source_line(node.meta.get("stack_trace"))
    return f"{path} ({line})" if line else path


def format_frames(frames: Iterable[FrameType]) -> str:
    """The frames in user files, outermost first, in the format of `traceback` and of torch.export's stack traces."""
    summaries = [
        traceback.FrameSummary(f.f_code.co_filename, f.f_lineno, f.f_code.co_name)
        for f in frames
        if is_user_file(f.f_code.co_filename)
    ]
    return "".join(traceback.StackSummary.from_list(summaries).format()).strip()


def user_line(trace: TracebackType | None) -> str:
    """`path/file.py:12: text` of the innermost user frame an exception passed through; "" when there is none."""
    for frame in reversed(traceback.extract_tb(trace)):
        if is_user_file(frame.filename):
            return f"{frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"
    return ""
