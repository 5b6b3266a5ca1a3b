# Tangled from optimizers: edit there, `make tangle`. sha256:0f825b01b1d1
from __future__ import annotations

import numpy as np

from companion.dtype import float32, float64
from companion.layers import Linear, Sequential, he
from companion.losses import cross_entropy
from companion.optim import SGD, Adam, AdamW, RMSprop
from companion.tensor import Tensor, manual_seed, ones, randint, randn


# chapters/gradients/optimizers.md:49
def valley(p):
    """Steep across, flat along: curvatures 40 and 1."""
    return (p[0] * p[0] * 40 + p[1] * p[1]) * 0.5


# chapters/gradients/optimizers.md:222
def path(make, loss=valley, start=(1.0, 10.0), steps=60, dtype=float32):
    p = Tensor(list(start), dtype).requires_grad_()
    optimizer, points = make([p]), [p.tolist()]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(p).backward()
        optimizer.step()
        points.append(p.tolist())
    return np.array(points)


# chapters/gradients/optimizers.md:509
def one_step(make):
    manual_seed(0)
    net = Sequential(Linear(784, 128, init=he), Tensor.relu,
                     Linear(128, 10))
    optimizer = make(net.parameters())
    x, t = randn(32, 784), randint(0, 10, (32,))
    cross_entropy(net(x), t).backward()
    optimizer.step()
    return net, optimizer


# chapters/gradients/optimizers.md:520
def remembered(optimizer):
    return sum(value.size * value.dtype.itemsize
               for own in optimizer.memory.values()
               for value in own.values())


MAKERS = {
    "SGD": lambda p: SGD(p), "momentum": lambda p: SGD(p, momentum=0.9),
    "RMSProp": RMSprop, "Adam": Adam, "AdamW": AdamW,
}


# chapters/gradients/optimizers.md:630
def curved(p):
    """A loss with unequal, changing curvature."""
    return ((p[1:] - p[:-1] * p[:-1]).square() * 10
            + (1 - p[:-1]).square()).sum()


SETTINGS = {
    "SGD": ({"lr": 1e-3}, {"lr": 1e-3, "momentum": 0.9},
            {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
            {"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
    "RMSprop": ({"lr": 1e-2, "alpha": 0.9},),
    "Adam": ({"lr": 1e-2}, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW": ({"lr": 1e-2, "weight_decay": 0.1},),
}
OURS = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW}
START = [-1.2, 1.0, 0.5, -0.3]


# chapters/gradients/optimizers.md:650
def final_point(name, setting):
    return path(lambda p: OURS[name](p, **setting), curved, START, 100,
                float64)[-1]


# chapters/gradients/optimizers.md:657
GOLDEN = {
    "SGD": [
        [-0.7530802224664, 0.6541185680285,
         0.4382499129476, 0.1353989971093],
        [0.2731250502146, 0.1156460548079,
         0.09612568082862, 0.008473907260264],
        [-0.2517566792472, 0.2071084211372,
         0.1386403373352, 0.02202233054949],
        [-0.6974687661094, 0.6031167763515,
         0.42173435844, 0.1745640530479],
    ],
    "RMSprop": [
        [-0.6750489934249, 0.5861044533935,
         0.3973457683791, 0.1669277208871],
    ],
    "Adam": [
        [-0.7286856716862, 0.6384003631339,
         0.4601284945876, 0.2101283080251],
        [-0.7238407711114, 0.6310086609712,
         0.4513432580403, 0.20408312057],
    ],
    "AdamW": [
        [-0.6822107968899, 0.5869984126246,
         0.4099487873483, 0.175788081445],
    ],
}


# chapters/gradients/optimizers.md:688
def test_trajectories_are_the_recorded_ones():
    for name, settings in SETTINGS.items():
        for setting, expected in zip(settings, GOLDEN[name]):
            assert np.allclose(final_point(name, setting), expected,
                               rtol=1e-9, atol=1e-12), (name, setting)


# chapters/gradients/optimizers.md:697
def message(call, kind=ValueError):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("expected an error")


# chapters/gradients/optimizers.md:706
def test_a_state_taken_over_continues_the_same_path():
    whole = path(lambda p: Adam(p, lr=0.1), steps=20)
    p = Tensor([1.0, 10.0]).requires_grad_()
    first = Adam([p], lr=0.1)
    for optimizer, steps in ((first, 12), (Adam([p], lr=0.1), 8)):
        if optimizer is not first:
            optimizer.load_state_dict(first.state_dict())
        for _ in range(steps):
            optimizer.zero_grad()
            valley(p).backward()
            optimizer.step()
    assert p.tolist() == whole[-1].tolist()


# chapters/gradients/optimizers.md:723
def test_only_parameters_with_gradients_move():
    a, b = Tensor([1.0]).requires_grad_(), Tensor([1.0]).requires_grad_()
    optimizer = AdamW([a, b], lr=0.1)
    (a * a).sum().backward()
    optimizer.step()
    assert a.item() != 1.0 and b.item() == 1.0
    optimizer.zero_grad()
    assert a.grad is None


# chapters/gradients/optimizers.md:736
def test_groups_have_settings_of_their_own():
    a, b = Tensor([1.0]).requires_grad_(), Tensor([1.0]).requires_grad_()
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    (a + b).sum().backward()
    optimizer.step()
    assert np.allclose([a.item(), b.item()], [0.9, 0.5])


# chapters/gradients/optimizers.md:747
def test_memory_is_none_one_or_two_times_the_parameters():
    for name, times in (("SGD", 0), ("momentum", 1), ("RMSProp", 1),
                        ("Adam", 2), ("AdamW", 2)):
        net, optimizer = one_step(MAKERS[name])
        weights = sum(4 * p.size for p in net.parameters())
        assert remembered(optimizer) == times * weights, name


# chapters/gradients/optimizers.md:758
def test_bad_requests_say_what_to_do():
    p = Tensor([1.0]).requires_grad_()
    assert "got none" in message(lambda: SGD([]))
    assert "comes twice" in message(lambda: SGD([p, p]))
    assert "is computed" in message(lambda: SGD([p * 2]))
    assert "unknown setting ['speed']" in message(
        lambda: SGD([{"params": [p], "speed": 3}]))
    assert "place 0 remembers (2,)" in message(
        lambda: Adam([p]).load_state_dict(
            {"0.steps": Tensor(1), "0.mean": ones(2)}))
    assert "lr is -1" in message(lambda: SGD([p], lr=-1))
    assert "betas is (0.9, 1.0)" in message(
        lambda: Adam([p], betas=(0.9, 1.0)))
