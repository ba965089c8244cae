"""Fixtures for the tests with real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import ringd
from tests.cluster import Cluster
from tests.ringkit import BOUNDED, connected

# The default deadline of 200 ms for each example says only how busy the machine is.
hypothesis.settings.register_profile("ringd", deadline=None)
hypothesis.settings.load_profile("ringd")


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new directory with a path short enough for sockets."""
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module")
def calm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give three daemons that nobody disturbs, for all tests of a module."""
    with Cluster(tmp_path_factory.mktemp("ring"), 3, settings=BOUNDED) as cluster:
        cluster.start().wait_ready()
        yield cluster


@pytest.fixture
def calm(calm_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[list[ringd.Ring]]:
    """Give a ring for each rank, in a group of the test's own."""
    with connected(calm_cluster, request.node.name[-60:]) as rings:
        yield rings
