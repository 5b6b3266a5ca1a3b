# Tangled from layers: edit there, `make tangle`. sha256:a0ce92dc10d7
from __future__ import annotations

import numpy as np

from companion.device import CPU
from companion.dtype import float32, float64
from companion.layers import (
    Dropout,
    LayerNorm,
    Linear,
    RMSNorm,
    Sequential,
    he,
    xavier,
)
from companion.tensor import manual_seed, ones, randn
from companion.timing import Timed


# chapters/tensors/layers.md:726
def message(call, kind=ValueError):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("expected an error")


# chapters/tensors/layers.md:735
def test_linear_is_a_product_and_a_sum():
    layer = Linear(5, 3, dtype=float64)
    x = randn(2, 7, 5, dtype=float64)
    expected = x.numpy() @ layer.weight.numpy().T + layer.bias.numpy()
    assert np.allclose(layer(x).numpy(), expected)
    assert Linear(5, 3, bias=False).bias is None
    assert "expected (…, 5)" in message(lambda: layer(ones(2, 4)))


# chapters/tensors/layers.md:745
def test_parameters_are_found_through_lists_and_nesting():
    net = Sequential(Linear(2, 3), Sequential(Linear(3, 1), LayerNorm(1)))
    names = [name for name, _ in net.named_parameters()]
    assert names == [
        "layers.0.weight", "layers.0.bias", "layers.1.layers.0.weight",
        "layers.1.layers.0.bias", "layers.1.layers.1.weight",
        "layers.1.layers.1.bias"]
    assert "# 15 parameters" in repr(net)


# chapters/tensors/layers.md:758
def test_a_shared_weight_is_one_parameter_with_two_names():
    first, second = Linear(3, 3), Linear(3, 3)
    second.weight = first.weight
    net = Sequential(first, second)
    assert len(net.parameters()) == 3
    assert len(net.state_dict()) == 4


# chapters/tensors/layers.md:769
def test_normalizations_against_numpy():
    x = randn(4, 6, dtype=float64) * 3 + 1
    a = x.numpy()
    centred = a - a.mean(-1, keepdims=True)
    layer = LayerNorm(6, dtype=float64)
    expected = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True)
                                 + 1e-5)
    assert np.allclose(layer(x).numpy(), expected)
    expected = a / np.sqrt((a ** 2).mean(-1, keepdims=True) + 1e-5)
    assert np.allclose(RMSNorm(6, dtype=float64)(x).numpy(), expected)


# chapters/tensors/layers.md:782
def test_layer_norm_survives_a_large_mean():
    x = randn(4, 64) + 1e4
    y = LayerNorm(64)(x)
    assert abs(y.mean().item()) < 1e-3
    assert abs(y.std(correction=0).item() - 1) < 1e-2


# chapters/tensors/layers.md:792
def test_dropout_keeps_the_expected_value_and_rests_in_eval():
    manual_seed(0)
    drop, x = Dropout(0.3), ones(200_000)
    y = drop(x)
    assert abs(y.mean().item() - 1) < 0.01
    assert abs((y == 0).to(float32).mean().item() - 0.3) < 0.01
    assert drop.eval()(x) is x
    assert "0 <= p < 1" in message(lambda: Dropout(1.0))


# chapters/tensors/layers.md:805
def test_state_makes_a_round_trip():
    manual_seed(1)
    one, two = [Sequential(Linear(3, 4), LayerNorm(4)) for _ in range(2)]
    x = randn(2, 3)
    assert not np.array_equal(one(x).numpy(), two(x).numpy())
    kept = two.parameters()
    two.load_state_dict(one.state_dict())
    assert np.array_equal(one(x).numpy(), two(x).numpy())
    assert all(a is b for a, b in zip(kept, two.parameters()))


# chapters/tensors/layers.md:817
def test_a_state_that_does_not_fit_changes_nothing():
    net = Sequential(Linear(3, 4), Linear(4, 2))
    before = [p.tolist() for p in net.parameters()]
    state = net.state_dict()
    bad = {"layers.0.weight": ones(4, 3), "layers.0.bias": ones(5),
           "extra": ones(1)}
    text = message(lambda: net.load_state_dict(bad))
    assert "missing: layers.1.weight (2, 4)" in text
    assert "not expected: extra (1,)" in text
    assert "layers.0.bias: expected (4,), got (5,)" in text
    assert [p.tolist() for p in net.parameters()] == before
    assert len(state) == 4


# chapters/tensors/layers.md:834
def test_modes_and_devices_reach_every_part():
    net = Sequential(Linear(2, 2), Sequential(Dropout(0.5)))
    net.eval()
    assert not net[1][0].training
    assert net.train()[1][0].training
    weight = net[0].weight
    net.to(float64)
    assert net[0].weight is weight and weight.dtype is float64
    timed = Timed(CPU)
    assert net.to(timed)[0].weight.device is timed


# chapters/tensors/layers.md:847
def test_a_state_crosses_devices_and_dtypes():
    one, two = Linear(3, 2), Linear(3, 2, dtype=float64)
    two.to(Timed(CPU))
    device = two.weight.device
    two.load_state_dict(one.state_dict())
    assert two.weight.device is device and two.weight.dtype is float64
    assert two.weight.tolist() == one.weight.tolist()


# chapters/tensors/layers.md:857
def test_first_weights_have_the_promised_variance():
    manual_seed(2)
    assert abs(xavier(300, 500).var().item() * 400 - 1) < 0.02
    assert abs(he(300, 500).var().item() * 250 - 1) < 0.02
