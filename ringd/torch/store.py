"""What stands for the store of torch where ranks have met in the ring, and there is none."""

from __future__ import annotations

from typing import NoReturn

from torch import distributed as dist


class NoStore(dist.Store):
    """Says so, where a store that no other rank sees would let its user wait in vain."""

    def _refuse(self, *_args: object) -> NoReturn:
        raise RuntimeError(
            'init_method="ringd://" has no store, which groups of other backends, and '
            "TORCH_DIST_INIT_BARRIER, need; use env:// or file:// with those"
        )

    get = set = add = wait = check = compare_set = delete_key = num_keys = _refuse


NO_STORE = NoStore()
