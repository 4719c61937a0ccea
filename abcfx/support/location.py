"""Say where a graph node or an exception comes from: module path, source file, line and text."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import os
import re
import traceback
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<text>[^\n]*)')
_PACKAGE = os.path.dirname(os.path.dirname(os.path.normpath(__file__)))
# Files that run between a user's model and a graph, none of which a user could edit.
_HIDDEN = (
    os.path.normpath(os.path.dirname(torch.__file__)) + os.sep,
    *(os.path.join(_PACKAGE, room) + os.sep for room in ("capture", "support")),
    contextlib.__file__,
)


@functools.cache
def is_user_file(filename: str) -> bool:
    """Whether a source file is one that a user could edit: not torch's, not abcfx's capture, not generated code."""
    return not (filename.startswith("<") or os.path.normpath(filename).startswith(_HIDDEN))


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module whose forward made an fx node; "" for the model itself.

    `model.get_submodule` takes such a path.
    """
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
    # torch.export names modules relative to a wrapper that it calls `L['self']`.
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def source_line(stack_trace: str | None) -> str:
    """Return `file.py:12: text` of the innermost line of user code in a node's recorded stack trace; "" for none."""
    frames = list(_FRAME.finditer(stack_trace or ""))
    for frame in [each for each in frames if is_user_file(each["file"])][::-1] or frames[::-1]:
        return f"{os.path.basename(frame['file'])}:{frame['line']}: {frame['text'].strip()}"
    return ""


def location(node: fx.Node) -> str:
    """Return where an fx node comes from, for messages, as `blocks.0.attn (model.py:31: y = att @ v)`."""
    path = module_path(node) or "the model's own forward"
    if node.op in ("placeholder", "get_attr"):
        path = f"argument {node.target!r}" if node.op == "placeholder" else str(node.target)
    line = source_line(node.meta.get("stack_trace"))
    return f"{path} ({line})" if line else path


def frames_above(bottom: FrameType | None) -> list[FrameType]:
    """Return the running Python frames from the one above `bottom` to the caller's; none if `bottom` is not running."""
    frames: list[FrameType] = []
    current = inspect.currentframe()
    frame = current.f_back if current is not None else None
    while frame is not None and frame is not bottom:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1] if frame is not None else []


def format_frames(frames: Iterable[FrameType]) -> str:
    """Write those of the Python frames that are user code, outermost first, in the format of `traceback`."""
    summaries = [
        traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        for frame in frames
        if is_user_file(frame.f_code.co_filename)
    ]
    return "".join(traceback.StackSummary.from_list(summaries).format()).strip()


def frame_line(frame: FrameType, number: int) -> str:
    """Return `path/file.py:12: text` for line `number` of the file whose code a Python frame runs."""
    filename = frame.f_code.co_filename
    return f"{filename}:{number}: {linecache.getline(filename, number).strip()}"


def user_line(trace: TracebackType | None) -> str:
    """Return `path/file.py:12: text` of the innermost line of user code in an exception's traceback; "" for none."""
    for frame in reversed(traceback.extract_tb(trace)):
        if is_user_file(frame.filename):
            return f"{frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"
    return ""
