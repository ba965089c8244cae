"""A ring whose key is replaced, while its daemons and programs go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ringd.cli.ask import ask
from ringd.config.keyfile import create_key
from ringd.wire.border.messages import AskReload
from tests.cluster import Cluster, wait_until
from tests.ringkit import HASTY, begin, connected, tensor, total


def test_a_reload_with_another_key_renews_the_links(tmp_path: Path) -> None:
    """Who has only the old key is out, and back once it has the new one; calls survive."""
    with Cluster(tmp_path, 2, settings=HASTY) as cluster:
        generation = cluster.start().wait_ready()
        with connected(cluster) as rings:
            key = tmp_path / "ring.key"
            key.unlink()
            create_key(key)
            assert ask(cluster[0].socket, AskReload, timeout=10.0)["refused"] is None
            wait_until(
                lambda: "different keys" in str((cluster[0].status() or {}).get("waiting_for")),
                "a neighbour that has only the old key is turned away",
            )
            reasons = {line["reason"] for line in cluster[0].log() if "reason" in line}
            assert "reloaded, with another key or other addresses" in reasons
            assert "asked to rejoin" not in reasons
            calls = begin(rings, lambda ring: ring.all_reduce(tensor(ring.rank, 1000)))
            assert ask(cluster[1].socket, AskReload, timeout=10.0)["refused"] is None
            cluster.wait_ready(beyond=generation)
            for call in calls:
                np.testing.assert_array_equal(call.result(), total(2, 1000))
