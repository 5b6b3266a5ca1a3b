"""Runs of training whose steps are programs, beside eager ones."""

import copy
import math

import numpy as np
import pytest

from companion import (
    SGD,
    Adam,
    AdamW,
    Dropout,
    Linear,
    Sequential,
    Tensor,
    cross_entropy,
    manual_seed,
    parameter,
    rand,
    randint,
    randn,
)
from companion.accelerate import GradScaler
from companion.compiler.capture import compiled, jit
from companion.device import named
from companion.dtype import float32
from companion.tensor.random import Generator
from companion.training import Batches, NotFinite, Trainer, warmup_cosine


def small(device, accumulate=1, spoiled=None):
    """A run with dropout, a schedule and clipping, before its first step."""
    manual_seed(0)
    place = named(device)
    net = Sequential(Linear(3, 8), Tensor.tanh, Dropout(0.2), Linear(8, 2))
    x = randn(64, 3, generator=Generator(1))
    t = randint(0, 2, (64,), generator=Generator(2))
    if spoiled is not None:
        x[spoiled] = math.nan
    run = Trainer(
        net.to(place), AdamW(net.parameters(), lr=0.05),
        Batches(x, t, size=16, seed=3),
        lambda net, x, t: cross_entropy(net(x.to(place)), t.to(place)),
        rate=warmup_cosine(30, 5), clip=0.5, accumulate=accumulate)
    if device == "lazy":
        compiled(run)
    return run


def weights(run):
    return [p.numpy() for p in run.model.parameters()]


def programs(run):
    return [*run.sweep.programs, *run.update.programs]


@pytest.mark.parametrize("accumulate", (1, 3))
def test_a_compiled_run_is_the_run(accumulate):
    eager = small("cpu", accumulate)
    eager.fit(25)
    ours = small("lazy", accumulate)
    ours.fit(25)
    for name in ("loss", "norm", "rate"):
        np.testing.assert_allclose(*[[row[name] for row in run.history]
                                     for run in (ours, eager)], 1e-4)
    for p, q in zip(ours.model.parameters(), eager.model.parameters()):
        np.testing.assert_allclose(p.numpy(), q.numpy(), 1e-3, 1e-5)
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-3, 1e-5)
    assert len(programs(ours)) == 2


def test_what_is_no_number_stops_it_before_a_weight_moves():
    said = []
    for device in ("cpu", "lazy"):
        run = small(device, spoiled=5)
        with pytest.raises(NotFinite) as told:
            while True:
                before = weights(run)
                run.step()
        assert all(map(np.array_equal, weights(run), before))
        said.append((str(told.value), run.steps))
    assert said[0] == said[1]


def test_a_compiled_run_goes_on_from_a_checkpoint(tmp_path):
    whole = small("lazy")
    whole.fit(25)
    small("lazy").fit(12, tmp_path / "run.safetensors")
    again = small("lazy")
    again.fit(25, tmp_path / "run.safetensors")
    for p, q in zip(weights(again), weights(whole)):
        np.testing.assert_allclose(p, q, 1e-4, 1e-5)


def test_a_state_is_put_back_in_the_middle():
    run = small("lazy")
    run.fit(10)
    state = copy.deepcopy(run.state_dict())
    run.fit(20)
    there = weights(run)
    run.load_state_dict(state)
    run.fit(20)
    for p, q in zip(weights(run), there):
        np.testing.assert_allclose(p, q, 1e-4, 1e-5)
    assert len(programs(run)) == 4  # for the tensors of either state


def test_exchanged_tensors_are_seen():
    """A weight, and an optimizer's memory, replaced between two calls."""
    def steps(device, wrap):
        layer = Linear(2, 1, bias=False).to(device)
        layer.weight.detach().assign(Tensor([[1.0, 2.0]], device=device))
        optimizer = SGD(layer.parameters(), 0.1, momentum=0.5)

        @wrap
        def step(x):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        x, found, first = Tensor([[1.0, -1.0]]), [], None
        for i in range(12):
            if i == 4:
                optimizer.load_state_dict(copy.deepcopy(first))
            if i == 8:
                layer.weight = Tensor([[3.0, -1.0]], float32,
                                      device).requires_grad_()
                optimizer.param_groups[0]["params"] = [layer.weight]
            step(x)
            first = first if i else optimizer.state_dict()
            found.append(layer.weight.numpy().ravel().copy())
        return found
    np.testing.assert_allclose(steps("lazy", jit),
                               steps("cpu", lambda step: step), 1e-5)


def test_an_array_is_no_argument():
    """It may be too long to be told from another by its text."""
    run = jit(lambda x: Tensor(x).sum())
    with pytest.raises(TypeError, match="expected tensors: Tensor"):
        run(np.zeros(10_000))


@pytest.mark.parametrize("make", [SGD, Adam])
def test_an_optimizer_made_inside_a_function_is_refused(make):
    w = parameter(Tensor([1.0, 2.0]).to("lazy"))

    @jit
    def step(x):
        w.grad = None
        optimizer = make([w], lr=0.1)
        (w * x).sum().backward()
        optimizer.step()
        return (w * x).sum()

    x = Tensor([1.0, 3.0]).to("lazy")
    with pytest.raises(ValueError, match="made inside the function"):
        for _ in range(5):
            before = w.numpy().copy()
            step(x)
    assert np.array_equal(before, w.numpy())


def test_a_generator_made_inside_a_function_is_refused():
    @jit
    def drawn(x):
        return x + rand(4, device="lazy", generator=Generator(3))

    x = Tensor([0.0] * 4).to("lazy")
    expected = drawn(x).tolist()
    assert drawn(x).tolist() == expected
    with pytest.raises(ValueError, match="made inside the function"):
        for _ in range(3):
            drawn(x)


def test_a_scale_of_the_loss_made_inside_a_function_is_refused():
    @jit
    def scaled(x):
        return GradScaler(2.0).scale(x)

    with pytest.raises(ValueError, match="made inside the function"):
        for _ in range(5):
            scaled(Tensor([1.0]).to("lazy"))
