"""Log lines of bounded length that are valid JSON all the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LEAST = 64
"""Characters of a field below which shortening it is not worth while."""

_KEPT_LONGEST = ("timestamp", "level", "event")


def render(event: Mapping[str, Any], limit: int) -> str:
    """Return *event* as one line of JSON, ASCII alone, of at most *limit* (some hundred) bytes.

    What is too long is shortened, the longest field first: of a text (a traceback) both ends stay,
    of a list the first items.
    """
    text = _dump(event)
    if len(text) <= limit:
        return text
    whole = {str(key): json.loads(_dump(value)) for key, value in event.items()}
    fields = dict(whole)
    while len(text) > limit:
        key = max(fields, key=lambda key: len(_dump(fields[key])))
        size = len(_dump(fields[key]))
        if size < _LEAST:  # so many fields
            left_out = [key for key in fields if key not in _KEPT_LONGEST]
            fields = {key: fields[key] for key in _KEPT_LONGEST if key in fields}
            fields["left_out"] = f"{len(left_out)} fields"
            return _dump(fields)
        size = max(_LEAST - 1, size // 2, size - len(text) + limit)
        fields[key] = _shortened(whole[key], size)
        text = _dump(fields)
    return text


def _dump(value: object) -> str:
    return json.dumps(value, default=str)


def _shortened(value: object, size: int) -> object:
    """Return as much of *value* as has at most *size* bytes in JSON."""
    if isinstance(value, list):
        count = len(value)
        while count > 1:
            count -= max(1, count // 8)
            some = [*value[:count], f"and {len(value) - count} more"]
            if len(_dump(some)) <= size:
                return some
    text = value if isinstance(value, str) else _dump(value)
    keep = min(len(text), size)
    while keep > 1:
        keep -= max(1, keep // 8)
        ends = text[: keep // 3], text[-(keep - keep // 3) :]
        some_text = f" [... {len(text) - keep} characters ...] ".join(ends)
        if len(_dump(some_text)) <= size:
            return some_text
    return ""
