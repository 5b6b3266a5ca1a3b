# Tangled from layers: edit there, `make tangle`. sha256:58d5db63b191
from __future__ import annotations

import math
import pickle
from copy import deepcopy
from functools import partial

import numpy as np

from companion.device import CPU
from companion.dtype import float16, float32, float64, int32
from companion.layers import (
    Dropout, LayerNorm, Linear, Module, RMSNorm, Sequential, he, xavier)
from companion.literate import message
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.random import GENERATOR, Generator, manual_seed, randn
from companion.tensor.reductions import detached
from companion.timing import Timed


def layer_norm_slowly(row, weight, bias, eps=1e-5):
    """One row, in double precision, as the formula says it."""
    n = len(row)
    mean = math.fsum(row) / n
    variance = math.fsum((x - mean) ** 2 for x in row) / n
    return [(x - mean) / math.sqrt(variance + eps) * w + b
            for x, w, b in zip(row, weight, bias)]


def test_linear_is_a_product_and_a_sum():
    layer = Linear(5, 3, dtype=float64)
    x = randn(2, 7, 5, dtype=float64)
    expected = x.numpy() @ layer.weight.numpy().T + layer.bias.numpy()
    assert np.allclose(layer(x).numpy(), expected)
    assert Linear(5, 3, bias=False).bias is None
    assert "expected (…, 5)" in message(lambda: layer(ones(2, 4)))


def test_parameters_are_found_through_lists_and_nesting():
    net = Sequential(Linear(2, 3), Sequential(Linear(3, 1), LayerNorm(1)))
    names = [name for name, _ in net.named_parameters()]
    assert names == [
        "layers.0.weight", "layers.0.bias", "layers.1.layers.0.weight",
        "layers.1.layers.0.bias", "layers.1.layers.1.weight",
        "layers.1.layers.1.bias"]
    assert "# 15 parameters" in repr(net)


def test_a_shared_weight_is_one_parameter_with_two_names():
    first, second = Linear(3, 3), Linear(3, 3)
    second.weight = first.weight
    net = Sequential(first, second)
    assert len(net.parameters()) == 3
    assert len(net.state_dict()) == 4
    net.to(float64)
    assert first.weight is second.weight
    assert net.count() == 9 + 3 + 3


def test_an_error_says_where_in_the_network():
    net = Sequential(Tensor.relu, Sequential(Linear(2, 3), Linear(2, 3)))
    try:
        net(ones(1, 2))
    except ValueError as error:
        assert "Linear: expected (…, 2), got (1, 3)" in str(error)
        assert error.__notes__ == ["in layers.1 of 2", "in layers.1 of 2"]
    else:
        raise AssertionError("expected an error")
    assert "unpack a list" in message(
        lambda: Sequential([Linear(2, 2)]), TypeError)
    assert net[:1](ones(2)).tolist() == [1.0, 1.0] and len(net[1:]) == 1


def test_dictionaries_and_lists_of_lists_are_searched():
    net = Module()
    net.heads = {"left": Linear(2, 1), "right": [Linear(2, 1)]}
    assert [name for name, _ in net.named_parameters()] == [
        "heads.left.weight", "heads.left.bias",
        "heads.right.0.weight", "heads.right.0.bias"]
    assert not net.eval().heads["right"][0].training
    assert "heads.right.0: Linear" in repr(net)
    assert "define one" in message(lambda: net(1), NotImplementedError)


def test_normalizations_against_the_formula():
    manual_seed(3)
    x = randn(4, 6, dtype=float64) * 3 + 1
    norm, rms = LayerNorm(6, dtype=float64), RMSNorm(6, dtype=float64)
    norm.load_state_dict({"weight": randn(6, dtype=float64),
                          "bias": randn(6, dtype=float64)})
    for row, got in zip(x.tolist(), norm(x).tolist()):
        assert np.allclose(got, layer_norm_slowly(
            row, norm.weight.tolist(), norm.bias.tolist()))
    a = x.numpy()
    expected = a / np.sqrt((a ** 2).mean(-1, keepdims=True) + 1e-5)
    assert np.allclose(rms(x).numpy(), expected)


def test_two_axes_can_be_one_row():
    x = randn(5, 2, 3)
    flat = LayerNorm(6)(x.reshape(5, 6)).reshape(5, 2, 3)
    assert np.allclose(LayerNorm((2, 3))(x).numpy(), flat.numpy(), atol=1e-6)
    assert LayerNorm(6, bias=False).count() == 6


def test_normalizations_keep_halves_finite_and_constant_rows_zero():
    x = Tensor([[1000.0, 0.0, 0.0, 500.0], [9.0, 9.0, 9.0, 9.0]], float16)
    for layer in (LayerNorm(4), RMSNorm(4), LayerNorm(4).to(float16)):
        y = layer(x)
        wide = layer.to(float32)(x.to(float32))
        assert y.dtype is float16
        assert np.allclose(y.numpy(), wide.numpy(), atol=2e-3)
    assert LayerNorm(4)(x)[1].tolist() == [0.0] * 4


def test_settings_are_used():
    x = Tensor([[1e-3, -1e-3]])
    for layer in LayerNorm(2, eps=1.0), RMSNorm(2, eps=1.0):
        assert np.allclose(layer(x).numpy(), x.numpy(), rtol=1e-3)
    even = Linear(3, 2, init=lambda o, i, **at: ones(o, i, **at))
    assert even.weight.tolist() == [[1.0] * 3] * 2
    half = Linear(3, 2, dtype=float16)
    assert half.weight.dtype is half.bias.dtype is float16


def test_what_no_layer_can_take_is_refused():
    for layer in Linear(2, 2), LayerNorm(2):
        assert "expected a Tensor, got a ndarray" in message(
            lambda layer=layer: layer(np.ones((3, 2))), TypeError)
    assert "no fractions" in message(
        lambda: Linear(2, 2).to(int32), TypeError)


def test_every_function_in_a_row_is_shown():
    shown = repr(Sequential(Linear(2, 2), partial(max, 0), np.tanh,
                            Dropout(0.5), Tensor.relu))
    names = [line.split(":")[1].split("(")[0].strip()
             for line in shown.splitlines()[1:]]
    assert names == ["Linear", "max", "tanh", "Dropout", "relu"]


def test_normalizations_refuse_other_widths():
    for layer in (LayerNorm(4), RMSNorm(4), LayerNorm((2, 4))):
        assert "4), got (3, 1)" in message(
            lambda layer=layer: layer(ones(3, 1)))
    assert LayerNorm(4)(zeros(0, 4)).shape == (0, 4)


def test_layer_norm_survives_a_large_mean():
    x = randn(4, 64) + 1e4
    y = LayerNorm(64)(x)
    assert abs(y.mean().item()) < 1e-3
    assert abs(y.std(correction=0).item() - 1) < 1e-2


def test_dropout_keeps_the_expected_value_and_rests_in_eval():
    manual_seed(0)
    drop, x = Dropout(0.3), ones(200_000)
    y = drop(x)
    assert abs(y.mean().item() - 1) < 0.01
    assert abs((y == 0).to(float32).mean().item() - 0.3) < 0.01
    assert drop.eval()(x) is x
    assert "0 <= p < 1" in message(lambda: Dropout(1.0))


def test_dropout_repeats_with_its_seed_and_removes_what_it_drops():
    drop = Dropout(0.5, Generator(1))
    first = drop(ones(64)).tolist()
    assert drop(ones(64)).tolist() != first
    drop.generator.manual_seed(1)
    assert drop(ones(64)).tolist() == first
    bad = drop(ones(64) * math.inf)
    assert set(bad.tolist()) == {0.0, math.inf}
    assert drop(ones(3, dtype=float16)).dtype is float16
    assert drop(ones(())).shape == ()


def test_state_makes_a_round_trip():
    manual_seed(1)
    one, two = [Sequential(Linear(3, 4), LayerNorm(4)) for _ in range(2)]
    x = randn(2, 3)
    assert not np.array_equal(one(x).numpy(), two(x).numpy())
    kept = two.parameters()
    two.load_state_dict(one.state_dict())
    assert np.array_equal(one(x).numpy(), two(x).numpy())
    assert all(a is b for a, b in zip(kept, two.parameters()))


def test_a_state_is_data():
    net = Linear(2, 2)
    state = net.state_dict()
    assert not any(x.requires_grad for x in state.values())
    net.load_state_dict({"weight": np.eye(2), "bias": np.ones(2)})
    assert state["weight"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert all(x.requires_grad for x in net.parameters())


def test_two_tensors_under_one_name_are_refused():
    net = Module()
    for doors in ({"a.b": ones(1), "a": {"b": ones(1)}},
                  {1: ones(1), "1": ones(1)}):
        net.doors = doors
        assert "two tensors are called doors." in message(net.state_dict)
    net.doors = {"Tür 门": [ones(1)], "": ones(2), 1: ones(3)}
    assert [*net.state_dict()] == ["doors.Tür 门.0", "doors.", "doors.1"]
    net.load_state_dict(net.state_dict())


def test_a_copied_module_shares_what_its_original_shared():
    draw = Generator(3)
    net = Sequential(Linear(2, 2), Linear(2, 2), Dropout(), Dropout(
        0.5, draw), Dropout(0.5, draw))
    net[1].weight = net[0].weight
    for twin in (deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin[0].weight is twin[1].weight is not net[0].weight
        assert twin.state_dict().keys() == net.state_dict().keys()
        assert twin[2].generator is GENERATOR
        assert twin[3].generator is twin[4].generator is not draw
        detached(twin[0].weight).assign(0.0)
        assert net[0].weight.abs().sum() > 0


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
    words = state | {"layers.0.weight": ones(4, 3),
                     "layers.1.bias": np.array(["a", "b"])}
    assert "expected numbers" in message(lambda: net.load_state_dict(words))
    assert "got (1,)" in message(
        lambda: net.load_state_dict(state | {"layers.1.bias": [1.0]}))
    assert [p.tolist() for p in net.parameters()] == before
    assert len(state) == 4


def test_weights_may_change_places():
    net = Sequential(Linear(2, 2), Linear(2, 2))
    first, second = [layer.weight.tolist() for layer in (net[0], net[1])]
    state = net.state_dict()
    names = "layers.0.weight", "layers.1.weight"
    net.load_state_dict(state | dict(zip(names, [
        state[name] for name in reversed(names)])))
    assert net[0].weight.tolist() == second
    assert net[1].weight.tolist() == first


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
    assert net.to("cpu")[0].weight.device is CPU
    for layer in (Linear(2, 2, device=timed), LayerNorm(2, device=timed),
                  RMSNorm(2, device=timed)):
        assert {p.device for p in layer.parameters()} == {timed}


def test_a_state_crosses_devices_and_dtypes():
    one, two = Linear(3, 2), Linear(3, 2, dtype=float64)
    two.to(Timed(CPU))
    device = two.weight.device
    two.load_state_dict(one.state_dict())
    assert two.weight.device is device and two.weight.dtype is float64
    assert two.weight.tolist() == one.weight.tolist()


def test_first_weights_have_the_promised_variance():
    manual_seed(2)
    assert abs(xavier(300, 500).var().item() * 400 - 1) < 0.02
    assert abs(he(300, 500).var().item() * 250 - 1) < 0.02
    again = [he(3, 5, generator=Generator(4), dtype=float64).tolist()
             for _ in range(2)]
    assert again[0] == again[1]
