"""Fixtures for the tests with torch: daemons, and programs with a process group over them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import distributed as dist

from tests.cluster import Cluster
from tests.faces.ranks import Ranks, beside
from tests.ringkit import BOUNDED


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Give as many daemons as the module's SIZE says, or two."""
    size = getattr(request.module, "SIZE", 2)
    with Cluster(tmp_path_factory.mktemp("ring"), size, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


def join() -> None:
    """Make the default process group as a user does."""
    dist.init_process_group("ringd", init_method="ringd://")


@pytest.fixture(scope="module")
def ranks(cluster: Cluster) -> Iterator[Ranks]:
    """Give a program beside each daemon, in a process group of all."""
    with Ranks(beside(cluster.sockets)) as ranks:
        ranks.call(join)
        yield ranks
        ranks.call(dist.destroy_process_group)
