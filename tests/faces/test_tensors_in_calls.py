"""Real tensors of torch and MLX in every call of the library, and the lines of the pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import ringd
from tests.cluster import Cluster
from tests.faces.ranks import Ranks, beside
from tests.ringkit import connected, everywhere

ROOT = Path(__file__).parents[2]
DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8"]
SIZE = 2


def in_torch(data: np.ndarray) -> Any:
    """Return a tensor of torch with the numbers of *data*."""
    if data.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(data)


def in_mlx(data: np.ndarray) -> Any:
    """Return an array of MLX with the numbers of *data*."""
    mx = pytest.importorskip("mlx.core")
    if data.dtype == ml_dtypes.bfloat16:
        return mx.array(data.view(np.uint16)).view(mx.bfloat16)
    return mx.array(data)


@pytest.fixture(scope="module")
def rings(cluster: Cluster) -> Iterator[list[ringd.Ring]]:
    """Give a ring of two."""
    with connected(cluster) as rings:
        yield rings


def name_of(x: Any) -> str:
    """Return the dtype of *x* as numpy calls it."""
    return str(x.dtype).rpartition(".")[2]


def exchange(ring: ringd.Ring, x: Any) -> Any:
    """Send *x* to the other rank, and receive its own."""
    sent = ring.send_async(x, 1 - ring.rank)
    got = ring.recv(tuple(x.shape), 1 - ring.rank, dtype=name_of(x))
    sent.wait()
    return got


CALLS: dict[str, Callable[[ringd.Ring, Any], Any]] = {
    "all_reduce": lambda ring, x: ring.all_reduce(x),
    "all_reduce max": lambda ring, x: ring.all_reduce(x, "max"),
    "all_reduce_coalesced": lambda ring, x: np.concatenate(ring.all_reduce_coalesced([x, x[:1]])),
    "reduce": lambda ring, x: ring.reduce(x, 0),
    "broadcast": lambda ring, x: ring.broadcast(x, 1),
    "all_gather": lambda ring, x: ring.all_gather(x),
    "gather": lambda ring, x: ring.gather(x, 1),
    "scatter": lambda ring, x: ring.scatter(x, 0),
    "reduce_scatter": lambda ring, x: ring.reduce_scatter(x),
    "all_to_all": lambda ring, x: ring.all_to_all(x),
    "all_to_all uneven": lambda ring, x: ring.all_to_all(
        x, *([[1, 3], [1, 2]] if ring.rank == 0 else [[2, 2], [3, 2]])
    ),
    "send and recv": exchange,
}


@pytest.mark.parametrize("kind", [in_torch, in_mlx])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_it(rings, call, dtype, kind):
    """The result is what an array of numpy gives, in its dtype, and is one of numpy."""

    def data(ring: ringd.Ring) -> np.ndarray:
        numbers = np.arange(12).reshape(4, 3) * (ring.rank + 1)
        return numbers.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    expected = everywhere(rings, lambda ring: CALLS[call](ring, data(ring)))
    found = everywhere(rings, lambda ring: CALLS[call](ring, kind(data(ring))))
    assert any(one is not None for one in expected)
    for one, other in zip(expected, found, strict=True):
        if one is None:
            assert other is None
        else:
            assert type(other) is np.ndarray
            assert other.dtype == one.dtype == data(rings[0]).dtype
            np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("kind", [in_torch, in_mlx])
def test_out_is_an_array_of_numpy(rings, kind):
    """Another is refused with the line to write, before anything is sent; nor is it a shape."""
    x, lengths = kind(np.ones(2, np.float32)), kind(np.array([2, 3], np.int32))
    with pytest.raises(TypeError, match=r"out must be a numpy array.*write out=np\.empty"):
        rings[0].all_reduce(x, out=x)
    for out in (x, lengths):
        with pytest.raises(TypeError, match=r"out must be a numpy array.*write a shape"):
            rings[0].recv(out, 1)
    for result in everywhere(rings, lambda ring: ring.all_reduce(x)):
        assert result.tolist() == [2.0, 2.0]


def lines_of(page: str, pattern: str) -> str:
    """Return the one piece of a page that is *pattern*, which has one group."""
    (found,) = re.findall(pattern, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.parametrize("module", ["torch", "mx"])
def test_the_lines_of_the_first_page(rings, module):
    """As they stand: they give the numbers of a bfloat16 result, bit for bit."""
    names: dict[str, Any] = {"np": np, "torch": torch}
    if module == "mx":
        names["mx"] = pytest.importorskip("mlx.core")
    line = lines_of("README.md", rf"^({module}\.[^\n]*\(result\.view[^\n]*)$")
    x = torch.tensor([1.5, -2.0, float("inf")], dtype=torch.bfloat16)
    for result in everywhere(rings, lambda ring: ring.all_reduce(x)):
        back = eval(line, {**names, "result": result})  # noqa: S307 - it is our own
        assert name_of(back) == "bfloat16"
        assert back.tolist() == [3.0, -4.0, float("inf")]


def test_gradients_of_mlx_in_one_call(rings):
    """The lines of the page, as they stand."""
    mx = pytest.importorskip("mlx.core")
    text = lines_of("docs/mlx.md", r"```python\n([^`]*all_reduce_coalesced[^`]*)```")

    def run(ring: ringd.Ring) -> Any:
        weight = mx.full((2, 3), 1.0 + 2 * ring.rank)
        tree = {"layers": [{"weight": weight, "bias": mx.array(0.5)}], "scale": mx.ones(4)}
        names = {"ring": ring, "mx": mx, "gradients": tree}
        exec(text, names)  # noqa: S102 - it is our own
        return names["gradients"]

    for found in everywhere(rings, run):
        assert found["layers"][0]["weight"].tolist() == [[2.0] * 3] * 2
        assert found["layers"][0]["bias"].tolist() == 0.5
        assert found["scale"].tolist() == [1.0] * 4


def check_compiled(all_reduce: Callable[[torch.Tensor], np.ndarray]) -> None:
    """Check that a compiled function can call *all_reduce*, of two ranks."""
    compiled = torch.compile(lambda x: all_reduce(x + x), backend="aot_eager")
    for number in (0.5, 1.5):
        found = compiled(torch.full((3,), number, dtype=torch.bfloat16))
        assert found.dtype == ml_dtypes.bfloat16
        assert found.tolist() == [4 * number] * 3


def type_in(text: str) -> dict[str, tuple[str, list[float]]]:
    """Run *text*; return the dtypes and numbers of the framework's tensors that it made."""
    typed: dict[str, Any] = {}
    exec(text, typed)  # noqa: S102 - it is our own
    if "all_reduce" in typed:
        check_compiled(typed["all_reduce"])
    typed["ring"].close()
    kind = typed["torch"].Tensor if "torch" in typed else typed["mx"].array
    return {name: (name_of(x), x.tolist()) for name, x in typed.items() if isinstance(x, kind)}


@pytest.mark.parametrize(
    ("page", "module", "others"),
    [
        ("docs/torch.md", "torch", {"in_place": "float32"}),
        ("docs/mlx.md", "mlx.core", {"total_of_float64": "float64"}),
    ],
)
def test_the_lines_of_the_other_pages(cluster, page, module, others):
    """As they stand, in a program on each machine."""
    pytest.importorskip(module)
    text = lines_of(page, r"```python\n([^`]*ringd\.connect\(\)[^`]*)```")
    dtypes = {"total": "float32", "total_of_bfloat16": "bfloat16", **others}
    with Ranks(beside(cluster.sockets)) as ranks:
        for found in ranks.call(type_in, text):
            assert found == {name: (dtype, [1.0, 4.0]) for name, dtype in dtypes.items()}
