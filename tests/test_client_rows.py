"""Tensors that travel as one row, before they do."""

import pytest

from ringd.client.rows import arrays_of


class Undecodable:
    """What numpy asks for an array, in vain."""

    def __array__(self, dtype=None, copy=None):
        """Raise an error that cannot be made of a text alone."""
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")


def test_an_array_that_cannot_be_had_is_named():
    """Whatever its own error is."""
    with pytest.raises(ValueError, match=r"x = xs\[1\]: .*no text") as caught:
        arrays_of([1.0, Undecodable()])
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)
