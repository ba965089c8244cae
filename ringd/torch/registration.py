"""How torch finds the backend; all else is imported when a process group is made."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

_DEVICES = ["cpu", "cuda", "mps"]
"""Those that a process group serves; all but the first by way of the host's memory."""

_log = logging.getLogger(__name__)


def register() -> None:
    """Register the backend "ringd" and ``init_method="ringd://"``; harmless where that is so."""
    from torch import distributed as dist  # noqa: PLC0415 - programs without torch import this too

    if not dist.is_available() or "RINGD" in dist.Backend._plugins:  # noqa: SLF001 - no other way
        return
    dist.register_rendezvous_handler("ringd", _rendezvous)
    dist.Backend.register_backend("ringd", _create, extended_api=True, devices=_DEVICES)


def autoload() -> None:
    """Register as an entry point of torch: whatever goes wrong, ``import torch`` goes on."""
    try:
        register()
    except Exception:  # noqa: BLE001 - also what torch itself raises
        _log.exception('torch.distributed has no backend "ringd"')


def _rendezvous(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
    from ringd.torch.rendezvous import rendezvous  # noqa: PLC0415 - as above

    return rendezvous(url, **options)


def _create(options: Any, _backend_options: object) -> Any:
    from ringd.torch.creation import create  # noqa: PLC0415 - as above

    return create(options)
