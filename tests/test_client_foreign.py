"""Tensors of torch and MLX, by stand-ins that refuse what the real ones refuse."""

import sys
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from ringd.client import tensors
from ringd.collective import reduction

BFLOATS = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)


class Tensor:
    """As torch's: numpy is refused what it does not have, and what would be lost."""

    is_nested = is_quantized = requires_grad = False
    tangent = None
    layout = "strided"
    device = SimpleNamespace(type="cpu")

    def __init__(self, data, dtype=None, **attributes):
        self.data = data
        self.dtype = dtype or data.dtype.name
        vars(self).update(attributes)

    def resolve_conj(self):
        """Return it."""
        return self

    resolve_neg = resolve_conj

    def is_complex(self):
        """Whether it is of complex numbers."""
        return self.dtype.startswith("complex")

    def view(self, dtype):
        """Return its bits."""
        return Tensor(self.data.view(dtype))

    def numpy(self):
        """Return the array, if numpy has its dtype."""
        if self.dtype not in ("int16", "float32"):
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return self.data

    def __array__(self, dtype=None, copy=None):
        """Return it for numpy's asarray."""
        return self.numpy()


class Array:
    """As MLX's: numpy does not understand its buffer of bfloat16."""

    def __init__(self, data):
        self.data = data
        self.dtype = data.dtype.name

    def view(self, dtype):
        """Return its bits."""
        return Array(self.data.view(dtype))

    def __array__(self, dtype=None, copy=None):
        """Return it for numpy's asarray."""
        if self.dtype == "bfloat16":
            raise ValueError("'bfloat16' is not a valid PEP 3118 buffer format string")
        return self.data


def unpack_dual(tensor):
    """Return what has the tangent of a tensor, as torch.autograd.forward_ad does."""
    return SimpleNamespace(tangent=tensor.tangent)


@pytest.fixture(autouse=True)
def frameworks(monkeypatch):
    """Let the program have imported both."""
    for name, words in {
        "torch": {
            "Tensor": Tensor,
            "strided": "strided",
            "bfloat16": "bfloat16",
            "int16": "int16",
            "autograd": SimpleNamespace(forward_ad=SimpleNamespace(unpack_dual=unpack_dual)),
        },
        "mlx.core": {"array": Array, "bfloat16": "bfloat16", "uint16": "uint16"},
    }.items():
        module = ModuleType(name)
        vars(module).update(words)
        monkeypatch.setitem(sys.modules, name, module)


FRAMEWORKS = pytest.mark.parametrize("kind", [Tensor, Array])


@FRAMEWORKS
@pytest.mark.parametrize("data", [BFLOATS, BFLOATS.T, BFLOATS[1, 2], BFLOATS[:0]])
def test_bfloat16_is_taken(kind, data):
    """Of any shape and layout, by its bits."""
    array = tensors.plain_array(kind(np.asarray(data)))
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array, data)


@FRAMEWORKS
def test_bfloat16_is_taken_where_it_lies(kind):
    """What the program sees is what is read: no copy is made on the way."""
    assert np.shares_memory(tensors.plain_array(kind(BFLOATS)), BFLOATS)


@FRAMEWORKS
def test_other_dtypes_are_numpy_s_business(kind):
    """They come as they came before."""
    data = np.ones(3, np.float32)
    assert tensors.plain_array(kind(data)) is data


@FRAMEWORKS
def test_without_ml_dtypes_it_says_what_to_install(monkeypatch, kind):
    """The package is named, and the extra that brings it."""
    monkeypatch.delitem(reduction._BY_NAME, "bfloat16")
    with pytest.raises(TypeError, match=r"ml_dtypes.*pip install '\.\[bf16\]'"):
        tensors.plain_array(kind(BFLOATS))


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (Tensor(BFLOATS, requires_grad=True), "x.detach()"),
        (Tensor(BFLOATS, tangent=BFLOATS), "torch.autograd.forward_ad.unpack_dual(x).primal"),
        (Tensor(BFLOATS, device=SimpleNamespace(type="mps")), "x.cpu()"),
        (Tensor(BFLOATS, layout="sparse_coo"), "x.to_dense()"),
        (Tensor(BFLOATS, is_nested=True, layout="jagged"), "x.to_padded_tensor(0.0)"),
        (Tensor(BFLOATS, is_quantized=True), "x.dequantize()"),
        (Tensor(BFLOATS, get_mask=None), "x.to_tensor(0)"),
        (Tensor(BFLOATS, to_local=None), "x.to_local()"),
        (Tensor(BFLOATS, "float8_e4m3fn"), "x.to(torch.float32)"),
        (Tensor(BFLOATS, "complex32"), "x.to(torch.complex64)"),
        ([Tensor(BFLOATS), Tensor(BFLOATS)], "torch.stack(x)"),
        ([1, Tensor(BFLOATS[0], requires_grad=True)], "y.detach()"),
        (([Tensor(BFLOATS, tangent=BFLOATS)],), "torch.autograd.forward_ad.unpack_dual(y).primal"),
        (([Array(BFLOATS)],), "mx.stack(x)"),
    ],
)
def test_what_cannot_be_taken_says_what_to_write(tensor, line):
    """Each in one TypeError of ours, with the line."""
    with pytest.raises(TypeError) as caught:
        tensors.plain_array(tensor)
    assert f"write {line}" in str(caught.value)


def test_what_torch_refuses_to_read_is_no_error_of_its_own():
    """Also where the bits of a bfloat16 cannot be had; another dtype would not help then."""

    class Subclass(Tensor):
        def view(self, dtype):
            raise RuntimeError(f"no {dtype} of a subclass")

    with pytest.raises(TypeError, match=r"Subclass.*no int16 of a.*outside of torch\.func"):
        tensors.plain_array(Subclass(BFLOATS))


def test_a_tensor_of_torch_s_device_without_numbers_is_not_to_be_copied_from_there():
    """As torch cannot do that."""
    with pytest.raises(TypeError, match="no numbers"):
        tensors.plain_array(Tensor(BFLOATS, device=SimpleNamespace(type="meta")))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_mlx_traces_has_no_numbers(dtype):
    """Where MLX says so."""

    class Traced(Array):
        def view(self, dtype):
            return Traced(self.data.view(dtype))

        def __array__(self, dtype=None, copy=None):
            raise ValueError("no eval during function transformations")

    with pytest.raises(TypeError, match=r"no eval.*outside of mx\.compile"):
        tensors.plain_array(Traced(np.ones(2, dtype)))


def test_lists_that_are_no_array_remain_numpy_s_error():
    """Nothing of ours is said of numbers."""
    with pytest.raises(ValueError, match="inhomogeneous"):
        tensors.plain_array([[1], [1, 2]])


def test_without_the_frameworks_nothing_changes(monkeypatch):
    """Neither is imported, nor needed."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delitem(sys.modules, "mlx.core")
    assert tensors.plain_array([1, 2]).tolist() == [1, 2]
    assert "torch" not in sys.modules


class Exported:
    """As a tensor of any framework that offers its numbers by DLPack alone."""

    def __init__(self, data, device=(1, 0)):
        self.data = data
        self.device = device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if self.device != (1, 0):
            raise BufferError("it lies on a GPU")
        return self.data.__dlpack__(**options)


def test_dlpack_is_taken_where_it_lies():
    """Where that is all that a framework has."""
    data = np.ones(3, np.float32)
    array = tensors.plain_array(Exported(data))
    assert np.shares_memory(array, data)


@pytest.mark.parametrize("x", [Exported(np.ones(3), (2, 0)), [Exported(np.ones(3))]])
def test_dlpack_that_numpy_cannot_take_says_what_to_write(x):
    """On another device; or in a list, where numpy does not look for it."""
    with pytest.raises(TypeError, match=r"write np\.from_dlpack\([xy]\)"):
        tensors.plain_array(x)
