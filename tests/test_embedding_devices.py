"""Embeddings and positions are the same on every device."""

import numpy as np
import pytest

from companion import Embedding, Tensor, rotary, sinusoidal
from companion.dtype import float16, float32, float64

ROWS = np.random.default_rng(0).standard_normal((6, 4))
INDEX = np.array([[5, 0, 2], [2, 2, 0]])
MESSAGE = np.random.default_rng(1).standard_normal((2, 3, 4))


@pytest.mark.parametrize("padding", [None, 2])
def test_rows_and_their_gradients(device, padding):
    layer = Embedding(6, 4, padding_idx=padding, device=device)
    assert layer.weight.device is device
    layer.load_state_dict({"weight": ROWS})
    found = layer(Tensor(INDEX, device=device))
    found.backward(Tensor(MESSAGE, float32, device))
    expected = np.zeros((6, 4))
    np.add.at(expected, INDEX, MESSAGE)
    if padding is not None:
        expected[padding] = 0
    assert found.device is device
    np.testing.assert_allclose(found.numpy(), ROWS[INDEX], 1e-6)
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, 1e-5)


@pytest.mark.parametrize("bad", [-1, 6])
def test_what_has_no_row_is_refused(device, bad):
    """On a GPU at the latest where a value is asked for."""
    layer = Embedding(6, 4, device=device)
    with pytest.raises(IndexError, match=f"the index {bad} is out of range"):
        layer(Tensor([0, bad], device=device)).numpy()


@pytest.mark.parametrize("dtype", [float16, float32, float64])
def test_places(device, dtype):
    places = Tensor([0, 1, 77_777], device=device)
    turn = np.outer([0, 1, 77_777], [1, 0.01])
    waves = np.stack([np.sin(turn), np.cos(turn)], -1).reshape(3, 4)
    found = sinusoidal(places, 4, dtype=dtype)
    assert found.dtype is dtype and found.device is device
    tolerance = {float16: 1e-3, float32: 1e-6, float64: 1e-10}[dtype]
    np.testing.assert_allclose(found.numpy(), waves, 0, tolerance)
    x = Tensor(MESSAGE, dtype, device)
    pairs = (MESSAGE[..., :2] + 1j * MESSAGE[..., 2:]) * np.exp(1j * turn)
    expected = np.concatenate([pairs.real, pairs.imag], -1)
    y = rotary(x, places)
    assert y.dtype is dtype and y.device is device
    np.testing.assert_allclose(y.numpy(), expected, 0, 5 * tolerance)
