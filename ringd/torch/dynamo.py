"""torch.compile calls a process group's methods; it must not try to compile them."""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

Class = TypeVar("Class", bound=type)


def hidden(cls: Class) -> Class:
    """Decorate a class whose methods are called as they are by code that is compiled.

    ``torch.compiler.disable`` does the same, and imports the whole compiler, which takes seconds,
    also where nothing is compiled.
    """
    for function in vars(cls).values():
        while inspect.isfunction(function):
            _skip(function.__code__)
            function = getattr(function, "__wrapped__", None)  # noqa: PLW2901 - one within the other
    return cls


def _skip(code: object) -> None:
    frames = torch._C._dynamo.eval_frame  # noqa: SLF001 - there is no public way
    if hasattr(frames, "set_code_exec_strategy"):
        action = frames._FrameAction.SKIP  # noqa: SLF001 - as above
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action, action))  # noqa: SLF001
    else:  # before torch 2.7
        frames.skip_code(code)
