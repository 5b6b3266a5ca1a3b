"""Halves are stable where floats are, in values and in gradients."""

import numpy as np
import pytest

import companion
from companion import Tensor, bfloat16, float16, float32

FUNCTIONS = {
    name: getattr(companion, name)
    for name in ("relu", "leaky_relu", "gelu", "silu")
} | {
    "gelu, tanh": lambda x: companion.gelu(x, "tanh"),
    "sigmoid": Tensor.sigmoid,
    "tanh": Tensor.tanh,
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "logsumexp": lambda x: x.logsumexp(0),
}


@pytest.mark.parametrize("dtype", [float16, bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes_far_out(name, dtype):
    """Those of float32, as nearly as the dtype can say them."""
    points = [-1e4, -300.0, -2.0, 0.5, 300.0, 1e4]
    found = []
    for kind in (float32, dtype):
        x = Tensor(points, kind).requires_grad_()
        y = FUNCTIONS[name](x)
        weight = Tensor(np.linspace(1, 2, y.size), kind).reshape(y.shape)
        (y * weight).sum().backward()
        assert y.dtype is x.grad.dtype is kind
        found.append((y.cast(float32).numpy(), x.grad.cast(float32).numpy()))
    for exact, half in zip(*found, strict=True):
        assert np.allclose(half, exact, rtol=0.02, atol=0.02)
