"""Real tensors of torch and MLX as the library reads them: every dtype and layout, or a refusal."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.masked import masked_tensor

from ringd.client.tensors import plain_array
from ringd.collective.reduction import DTYPE_NAMES, dtype_from_name

LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.T,
    "with gaps": lambda x: x[:, 1::2],
    "of no dimension": lambda x: x[1, 2],
    "empty": lambda x: x[:0],
}
NUMBERS = np.arange(12).reshape(3, 4)


def reads(x: object, expected: np.ndarray) -> None:
    """See that *x* is read as *expected*, in dtype, shape and numbers."""
    found = plain_array(x)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_torch(name, layout):
    """All that ringd reduces."""
    x = torch.from_numpy(NUMBERS).to(getattr(torch, name))
    reads(LAYOUTS[layout](x), LAYOUTS[layout](NUMBERS.astype(dtype_from_name(name))))


@pytest.mark.parametrize("layout", [*LAYOUTS, "not computed yet"])
@pytest.mark.parametrize("name", [name for name in DTYPE_NAMES if name != "complex128"])
def test_mlx(name, layout):
    """All that MLX has of it: no complex128; float64 on the CPU."""
    mx = pytest.importorskip("mlx.core")
    with mx.stream(mx.cpu):
        x = mx.array(NUMBERS).astype(mx.bool_ if name == "bool" else getattr(mx, name))
        change = LAYOUTS.get(layout, lambda x: x + x)
        reads(change(x), change(NUMBERS.astype(dtype_from_name(name))))


def test_views_of_torch():
    """Those whose memory does not hold their numbers as they are."""
    z = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    reads(z.conj(), np.array([1 - 2j, 3 + 4j], np.complex64))
    reads(z.conj().imag, np.array([-2, 4], np.float32))
    reads(z[0].expand(2, 2), np.full((2, 2), 1 + 2j, np.complex64))
    reads(torch.arange(4).flip(0), np.array([3, 2, 1, 0]))
    halves = torch.tensor([1.5], dtype=torch.bfloat16).expand(3)
    reads(halves, np.full(3, 1.5, ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "transformed",
    [
        lambda read, x: torch.vmap(read)(x[None]),
        lambda read, x: torch.func.jvp(read, (x,), (x,)),
        lambda read, x: torch.func.grad(lambda x: read(x).sum())(x),
    ],
)
def test_torch_s_transforms(transformed, dtype):
    """Nobody but torch can look through them: refused, before a derivative or a batch is lost."""

    def read(x):
        plain_array(x)
        return x

    with pytest.raises(TypeError, match=r"would be lost|outside of torch\.func"):
        transformed(read, torch.ones(3, dtype=dtype))


def test_torch_without_numbers():
    """Each of them says so, and names no dtype as the remedy."""
    with FakeTensorMode():
        fake = torch.ones(3)
    with pytest.raises(TypeError, match=r"FakeTensor without numbers.*plain tensor"):
        plain_array(fake)
    with pytest.raises(TypeError, match="'meta' has no numbers"):
        plain_array(torch.ones(3, device="meta"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (lambda x: x.to_sparse(), "to_dense"),
        (lambda x: torch.nested.nested_tensor([x]), "to_padded_tensor"),
        (lambda x: torch.nested.nested_tensor([x], layout=torch.jagged), "to_padded_tensor"),
        (lambda x: masked_tensor(x, x > 0), r"to_tensor\(0\)"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "dequantize"),
        (lambda x: x.clone().requires_grad_(), "detach"),
        (lambda x: x.to("meta"), "no numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(nested|Masked|quantize|alias)")
def test_torch_s_other_kinds(kind, words):
    """They are told apart before torch is asked for a tangent, which it has not for all of them."""
    with forward_ad.dual_level():
        x = kind(torch.ones(3))
        for given in (x, [x]):
            with pytest.raises(TypeError, match=words):
                plain_array(given)


def test_a_tangent_is_not_dropped():
    """Though torch itself would hand the numbers over, also from within a list."""
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        with pytest.raises(TypeError, match=r"tangent.*unpack_dual\(x\)\.primal"):
            plain_array(x)
        with pytest.raises(TypeError, match=r"tangent.*unpack_dual\(y\)\.primal"):
            plain_array([torch.ones(3), x])
        np.testing.assert_array_equal(plain_array([torch.ones(3)] * 2), np.ones((2, 3)))
        reads(forward_ad.unpack_dual(x).primal, np.ones(3, np.float32))


@pytest.mark.parametrize("transform", ["compile", "vmap"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_mlx_s_transforms(name, transform):
    """Within them there are no numbers."""
    mx = pytest.importorskip("mlx.core")

    def read(x):
        plain_array(x)
        return x

    with pytest.raises(TypeError, match=r"outside of mx\.compile and mx\.vmap"):
        getattr(mx, transform)(read)(mx.ones((2, 3), getattr(mx, name)))


def test_mlx_s_gradients_stop_here():
    """As docs/mlx.md says: to mx.grad, what goes through numpy is a constant."""
    mx = pytest.importorskip("mlx.core")
    gradient = mx.grad(lambda x: (x + mx.array(plain_array(3 * x))).sum())(mx.ones(3))
    assert gradient.tolist() == [1.0, 1.0, 1.0]


def test_mlx_makes_float32_of_float64():
    """Unless it is told not to, as docs/mlx.md says."""
    mx = pytest.importorskip("mlx.core")
    result = np.array([1 / 3])
    assert mx.array(result).dtype == mx.float32
    assert mx.array(result * 1j).dtype == mx.complex64
    with mx.stream(mx.cpu):
        assert mx.array(result, dtype=mx.float64).tolist() == [1 / 3]
