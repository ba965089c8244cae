"""The tests of a backend that ship in torch's wheel, by name, by four ranks on two machines.

Left out are those that need a GPU, and those of monitored_barrier, which torch has for gloo alone.
As shipped, those of all_reduce look at no values; test_torch_values.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.faces import shipped
from tests.faces.ranks import Ranks, beside

LIKE_GLOO = [
    "test_Backend_enum_class",
    "test_DistributedDataParallelCPU",
    "test_DistributedDataParallelCPU_grad_is_view",
    "test_DistributedDataParallel_requires_grad",
    "test_accumulate_gradients_no_sync",
    "test_accumulate_gradients_no_sync_allreduce_hook",
    "test_accumulate_gradients_no_sync_allreduce_with_then_hook",
    "test_accumulate_gradients_no_sync_grad_is_view",
    "test_all_gather",
    "test_all_gather_coalesced_complex",
    "test_all_gather_coalesced_full_group",
    "test_all_gather_coalesced_group",
    "test_all_gather_coalesced_simple",
    "test_all_gather_coalesced_with_empty",
    "test_all_gather_complex",
    "test_all_gather_full_group",
    "test_all_gather_group",
    "test_all_gather_object_default_pg",
    "test_all_gather_object_subgroup",
    "test_all_reduce_coalesced_full_group_max",
    "test_all_reduce_coalesced_full_group_min",
    "test_all_reduce_coalesced_full_group_product",
    "test_all_reduce_coalesced_full_group_sum",
    "test_all_reduce_coalesced_group_max",
    "test_all_reduce_coalesced_group_min",
    "test_all_reduce_coalesced_group_product",
    "test_all_reduce_coalesced_group_sum",
    "test_all_reduce_coalesced_max",
    "test_all_reduce_coalesced_max_complex_unsupported",
    "test_all_reduce_coalesced_min",
    "test_all_reduce_coalesced_product",
    "test_all_reduce_coalesced_sum",
    "test_all_reduce_complex_unsupported_ops",
    "test_all_reduce_full_group_max",
    "test_all_reduce_full_group_min",
    "test_all_reduce_full_group_product",
    "test_all_reduce_full_group_sum",
    "test_all_reduce_group_max",
    "test_all_reduce_group_min",
    "test_all_reduce_group_product",
    "test_all_reduce_group_sum",
    "test_all_reduce_max",
    "test_all_reduce_min",
    "test_all_reduce_product",
    "test_all_reduce_sum",
    "test_all_reduce_sum_async",
    "test_all_reduce_sum_complex",
    "test_barrier",
    "test_barrier_full_group",
    "test_barrier_group",
    "test_barrier_timeout_full_group",
    "test_barrier_timeout_global",
    "test_barrier_timeout_group",
    "test_batch_isend_irecv_gloo",
    "test_batch_isend_irecv_gloo_tags",
    "test_broadcast",
    "test_broadcast_full_group",
    "test_broadcast_group",
    "test_ddp_create_graph",
    "test_ddp_logging_data_cpu",
    "test_destroy_full_group",
    "test_destroy_group",
    "test_dump_DDP_relevant_env_vars",
    "test_gather",
    "test_gather_checks",
    "test_gather_full_group",
    "test_gather_group",
    "test_gather_object",
    "test_gather_object_subgroup",
    "test_get_backend",
    "test_get_future",
    "test_get_rank",
    "test_get_rank_size_full_group",
    "test_get_rank_size_group",
    "test_grads_same_across_ranks_with_no_sync",
    "test_irecv",
    "test_isend",
    "test_isend_autograd_profiler",
    "test_isend_torch_profiler",
    "test_new_subgroups_with_group_param",
    "test_reduce_full_group_max",
    "test_reduce_full_group_min",
    "test_reduce_full_group_product",
    "test_reduce_full_group_sum",
    "test_reduce_group_max",
    "test_reduce_group_min",
    "test_reduce_group_product",
    "test_reduce_group_sum",
    "test_reduce_max",
    "test_reduce_min",
    "test_reduce_product",
    "test_reduce_sum",
    "test_reduce_sum_twice",
    "test_scatter",
    "test_scatter_checks",
    "test_scatter_complex",
    "test_scatter_full_group",
    "test_scatter_group",
    "test_scatter_object_list",
    "test_send_recv",
    "test_send_recv_any_source",
    "test_send_recv_any_source_autograd_profiler",
    "test_send_recv_any_source_torch_profiler",
    "test_send_recv_autograd_profiler",
    "test_send_recv_torch_profiler",
    "test_send_recv_with_tag",
    "test_send_recv_with_tag_autograd_profiler",
    "test_send_recv_with_tag_torch_profiler",
    "test_sparse_all_reduce_sum",
    "test_static_graph_api_cpu",
]

LIKE_MPI = [
    "test_all_to_all",
    "test_all_to_all_complex",
    "test_all_to_all_full_group",
    "test_all_to_all_group",
    "test_all_to_all_single_equal_split",
    "test_all_to_all_single_equal_split_complex",
    "test_all_to_all_single_equal_split_full_group",
    "test_all_to_all_single_equal_split_group",
    "test_all_to_all_single_unequal_split",
    "test_all_to_all_single_unequal_split_complex",
    "test_all_to_all_single_unequal_split_full_group",
    "test_all_to_all_single_unequal_split_group",
]

TESTS = [(name, "gloo") for name in LIKE_GLOO] + [(name, "mpi") for name in LIKE_MPI]


class Four:
    """Four ranks, which are replaced where a test has left them in disorder."""

    def __init__(self, cluster: Cluster) -> None:
        sockets = [cluster.sockets[rank // 2] for rank in range(shipped.WORLD)]
        environs = enumerate(beside(sockets))
        self._environs = [{**environ, "RANK": str(rank)} for rank, environ in environs]
        self._ranks: Ranks | None = None

    def run(self, name: str, backend: str, directory: Path) -> list[str]:
        """Run a test; return what each rank says."""
        for place in ("barrier", "test_dir"):
            (directory / place).mkdir()
        (directory / "lockfile").touch()
        if self._ranks is None:
            self._ranks = Ranks(self._environs)
        try:
            return self._ranks.call(shipped.run, name, backend, str(directory))
        except AssertionError:
            self.close()
            raise

    def close(self) -> None:
        """End them."""
        if self._ranks is not None:
            self._ranks.close()
        self._ranks = None


@pytest.fixture(scope="module")
def four(cluster: Cluster) -> Iterator[Four]:
    """Give two ranks on each of two machines."""
    four = Four(cluster)
    yield four
    four.close()


@pytest.mark.parametrize(("name", "backend"), TESTS, ids=[name for name, _ in TESTS])
def test_shipped(four: Four, name: str, backend: str, tmp_path: Path) -> None:
    """It passes on each rank; those that have no part in it may say so."""
    assert set(four.run(name, backend, tmp_path)) == {"passed"}
