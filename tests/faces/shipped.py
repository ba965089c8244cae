"""The tests that ship in torch's wheel, run over the ring by processes that go on to the next one.

Which of them exist, and what some of them do, follows from the backend's name. So torch's module
is imported once as if that was gloo, and once as if it was mpi.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import distributed as dist
from torch.testing._internal import common_distributed

WORLD = 4
_MODULE = "torch.testing._internal.distributed.distributed_test"


@functools.cache
def module_for(backend: str) -> ModuleType:
    """Return torch's module with the tests that *backend* has."""
    os.environ.update(BACKEND=backend, WORLD_SIZE=str(WORLD), INIT_METHOD="file://unused")
    os.environ.setdefault("TEMP_DIR", "/nowhere")
    common_distributed.skip_if_small_worldsize = lambda test: test  # it asks for 8
    for feature in ("ddp", "subgroup", "plugin"):
        common_distributed.DistTestCases.backend_feature[feature].add("ringd")
    spec = importlib.util.find_spec(_MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # where its classes are pickled from
    spec.loader.exec_module(module)
    return module


@functools.cache
def class_for(backend: str) -> type[Any]:
    """Return the class of these tests."""
    module = module_for(backend)
    bases = (module.TestDistBackend, module.DistributedTest._DistTestBase)
    return type("Shipped", bases, {"__module__": __name__})


def run(name: str, backend: str, directory: str) -> str:
    """Run a test as the rank of this process; return ``"passed"``, or why it was skipped.

    Raises:
        Exception: what the test raises.
    """
    module, rank = module_for(backend), int(os.environ["RANK"])
    module.BACKEND = "ringd" if name == "test_get_backend" else backend
    module.INIT_METHOD = f"file://{directory}/another"
    os.environ["TEMP_DIR"] = directory
    module.Barrier.barrier_id = 0
    torch.manual_seed(0)  # as in a new process, all ranks begin alike
    case = class_for(backend)(name)
    case.rank = rank
    case.file_name = str(Path(directory) / "store")
    seconds = module.CUSTOM_PG_TIMEOUT.get(name, 60)
    dist.init_process_group(
        "ringd",
        init_method=f"file://{case.file_name}",
        world_size=WORLD,
        rank=rank,
        timeout=module.timedelta(seconds=seconds),
    )
    try:
        case._barrier()
        getattr(case, name)()
        case._barrier()
    except unittest.SkipTest as skipped:
        return f"skipped: {skipped}"
    except SystemExit as left:
        return f"skipped: exit {left.code}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return "passed"
