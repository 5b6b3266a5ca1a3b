# Tangled from optimizers: edit there, `make tangle`. sha256:3b8ecf8a4de9
from __future__ import annotations

import functools
import pickle
import resource
from copy import deepcopy

import numpy as np

from companion.device import CPU
from companion.dtype import float32, float64
from companion.layers import Linear, Sequential, he
from companion.literate import message
from companion.losses import cross_entropy
from companion.native import keep_freed
from companion.optim import SGD, Adam, AdamW, RMSprop, decay_groups
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.random import manual_seed, randint, randn
from companion.timing import Timed


def valley(p):
    """Steep across, flat along: curvatures 40 and 1."""
    return (p[0] * p[0] * 40 + p[1] * p[1]) * 0.5


def path(make, loss=valley, start=(1.0, 10.0), steps=60, dtype=float32):
    p = Tensor(list(start), dtype).requires_grad_()
    optimizer, points = make([p]), [p.tolist()]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(p).backward()
        optimizer.step()
        points.append(p.tolist())
    return np.array(points)


def slope(x):
    """25 x, then a gentler stretch between 1 and 2, then 25 again."""
    return 25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24


def rolled(steps=60, **settings):
    """Where a point that starts at 3.3 goes on that landscape."""
    p = Tensor([3.3], float64).requires_grad_()
    optimizer, points = SGD([p], **settings), [3.3]
    for _ in range(steps):
        p.grad = Tensor([slope(points[-1])], float64)
        optimizer.step()
        points.append(p.item())
    return points


def moved(make, steps=2000, at=1000):
    """How far p is behind a minimum that jumps from 0 to 1 half-way."""
    p, noise = Tensor([0.5]).requires_grad_(), np.random.default_rng(0)
    optimizer = make([p])
    for step in range(steps):
        p.grad = p.detach() - float(step >= at) + noise.normal()
        optimizer.step()
    return abs(1.0 - p.item())


def shaken(make, steps=200):
    p = Tensor([1.0]).requires_grad_()
    optimizer = make([p])
    for step in range(steps):
        p.grad = Tensor([10.0 if step % 2 else -10.0])
        optimizer.step()
    return p.item()


def interrupted(pass_on, steps=20, stop=12):
    """Adam, its rate halved at step 5, stopped and made anew."""
    p = Tensor([1.0, 10.0]).requires_grad_()
    optimizer = Adam([p], lr=0.1)
    for step in range(steps):
        if step == 5:
            optimizer.param_groups[0]["lr"] = 0.05
        if step == stop:
            new = Adam([p], lr=0.1)
            pass_on(optimizer, new)
            optimizer = new
        optimizer.zero_grad()
        valley(p).backward()
        optimizer.step()
    return p.tolist()


def handed_over(old, new):
    new.load_state_dict(old.state_dict())


def one_step(make):
    manual_seed(0)
    net = Sequential(Linear(784, 128, init=he), Tensor.relu,
                     Linear(128, 10))
    optimizer = make(net.parameters())
    x, t = randn(32, 784), randint(0, 10, (32,))
    cross_entropy(net(x), t).backward()
    optimizer.step()
    return net, optimizer


def remembered(optimizer):
    """Bytes of all tensors in the memory of an optimizer."""
    return sum(value.size * value.dtype.itemsize
               for own in optimizer.state.values()
               for value in own.values() if isinstance(value, Tensor))


MAKERS = {
    "SGD": lambda p: SGD(p), "momentum": lambda p: SGD(p, momentum=0.9),
    "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW,
}


def sweeps(make, n=4096):
    """Words that a step moves for each parameter, and its operations."""
    timed = Timed(CPU)
    p = zeros(n).to(timed).requires_grad_()
    p.grad, optimizer = ones(n).to(timed), make([p])
    optimizer.step()
    timed.calls.clear()
    optimizer.step()
    moved = [moved for _, _, moved in timed.calls]
    return round(sum(moved) / (4 * n)), sum(m > 100 for m in moved)


def faults(run):
    """How many pages are touched for the first time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def curved(p):
    """A loss with unequal, changing curvature."""
    return ((p[1:] - p[:-1] * p[:-1]).square() * 10
            + (1 - p[:-1]).square()).sum()


START = [-1.2, 1.0, 0.5, -0.3]
BALL = {"lr": 1e-3, "momentum": 0.9}
SETTINGS = [
    (SGD, {"lr": 1e-3}), (SGD, {"lr": 1e-3, "weight_decay": 0.1}),
    (SGD, BALL), (SGD, BALL | {"weight_decay": 0.1}),
    (SGD, BALL | {"nesterov": True}),
    (SGD, BALL | {"nesterov": True, "weight_decay": 0.1}),
    (RMSprop, {"lr": 1e-2, "alpha": 0.9}),
    (RMSprop, {"lr": 1e-2, "alpha": 0.9, "weight_decay": 0.1}),
    (Adam, {"lr": 1e-2}), (Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    (AdamW, {"lr": 1e-2, "weight_decay": 0.0}),
    (AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
]

GOLDEN64 = [
    [-0.753080222466, 0.654118568029, 0.438249912948, 0.135398997109],
    [-0.748993968378, 0.64957621423, 0.434235307656, 0.133159396703],
    [0.273125050215, 0.115646054808, 0.0961256808286, 0.00847390726026],
    [0.411819954954, 0.17664766673, 0.100474499508, 0.00787221491092],
    [-0.251756679247, 0.207108421137, 0.138640337335, 0.0220223305495],
    [-0.0866025210156, 0.135777601006, 0.111973811128, 0.0140265919006],
    [-0.675048993425, 0.586104453393, 0.397345768379, 0.166927720887],
    [-0.645352762966, 0.534382219855, 0.364427078953, 0.129277888979],
    [-0.728685671686, 0.638400363134, 0.460128494588, 0.210128308025],
    [-0.723840771111, 0.631008660971, 0.45134325804, 0.20408312057],
    [-0.728685671686, 0.638400363134, 0.460128494588, 0.210128308025],
    [-0.68221079689, 0.586998412625, 0.409948787348, 0.175788081445],
]
GOLDEN32 = [
    [-0.753080189, 0.654118598, 0.438249916, 0.135399014],
    [-0.748993933, 0.649576187, 0.434235305, 0.133159399],
    [0.273124576, 0.115645945, 0.0961256921, 0.00847391225],
    [0.411819249, 0.176647201, 0.100474447, 0.0078722164],
    [-0.251757503, 0.207108885, 0.138640523, 0.0220223889],
    [-0.0866030157, 0.135777786, 0.111973867, 0.0140266055],
    [-0.675049067, 0.586104214, 0.397345871, 0.166927546],
    [-0.645353079, 0.53437829, 0.364428848, 0.129275039],
    [-0.728685677, 0.638400316, 0.460128456, 0.210128263],
    [-0.723840654, 0.631008685, 0.451343268, 0.204083115],
    [-0.728685677, 0.638400316, 0.460128456, 0.210128263],
    [-0.68221128, 0.58699888, 0.409949303, 0.175788477],
]


def test_trajectories_are_the_recorded_ones():
    for dtype, golden, error in ((float64, GOLDEN64, 1e-11),
                                 (float32, GOLDEN32, 3e-5)):
        for (make, setting), expected in zip(SETTINGS, golden):
            end = path(lambda p, make=make, setting=setting: make(
                p, **setting), curved, START, 100, dtype)[-1]
            assert np.allclose(end, expected, rtol=error, atol=error), (
                make, setting, dtype)


def twins(make, steps=200):
    """Of 12 pairs of paths that begin one rounding apart, how far those
    are apart that part the most."""
    def bent(p):
        return (p[1] - p[0] * p[0]).square() + (1 - p[0]).square()

    def apart(start):
        near = start[0], float(np.nextafter(start[1], 1.0))
        one, other = [path(make, bent, begin, steps, float64)
                      for begin in (start, near)]
        return np.abs(one - other).max(axis=1)
    return max([apart((-k / 20, 0.6)) for k in range(4, 16)], key=np.max)


def test_rmsprop_amplifies_one_rounding_and_momentum_does_not():
    assert twins(lambda p: RMSprop(p, lr=0.02, alpha=0.95)).max() > 1e-4
    assert twins(lambda p: SGD(p, lr=0.02, momentum=0.9)).max() < 1e-13


def test_a_heavy_ball_can_roll_for_ever():
    ball = rolled(600, lr=1 / 9, momentum=4 / 9)
    assert abs(ball[-1] - ball[-4]) < 1e-9 < abs(ball[-1] - ball[-2])
    ahead = rolled(lr=1 / 25, momentum=2 / 3, nesterov=True)
    assert abs(ahead[-1]) < 1e-6


def test_freed_memory_is_used_again():
    for size in 1 << 19, 1 << 24:  # 2 MB, and more than glibc would keep
        x = ones(size)
        kept = keep_freed(1 << 29)
        for _ in range(2):
            count = faults(lambda x=x: x + x)
        assert count < 64 or not kept


def test_a_state_handed_over_continues_the_same_path():
    assert interrupted(handed_over) == interrupted(handed_over, stop=99)


def test_a_copied_pair_goes_on_as_a_pair():
    """Model and optimizer, in either order, shared weights, two groups."""
    def pair():
        manual_seed(7)
        net = Sequential(Linear(2, 2), Linear(2, 2), Linear(2, 1))
        net[1].weight = net[0].weight
        return net, AdamW(decay_groups(net, 0.1), lr=0.1)

    def trained(net, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            net(ones(3, 2)).square().sum().backward()
            optimizer.step()
        return [p.tolist() for p in net.parameters()]

    expected = trained(*pair(), 6)
    for way in deepcopy, lambda x: pickle.loads(pickle.dumps(x)):
        net, optimizer = pair()
        trained(net, optimizer, 3)
        found, again = way((net, optimizer)), way([optimizer, net])[::-1]
        assert trained(*found, 3) == trained(*again, 3) == expected
        assert trained(net, optimizer, 3) == expected
        assert found[1].state_dict()["state"][0]["step"] == 6
        assert found[0][0].weight is found[0][1].weight


def test_a_parameter_that_left_its_group_leaves_no_memory():
    a, b = [Tensor([1.0]).requires_grad_() for _ in range(2)]
    optimizer = Adam([{"params": [a]}, {"params": [b]}])
    (a + b).sum().backward()
    optimizer.step()
    del optimizer.param_groups[0]
    assert list(optimizer.state_dict()["state"]) == [0]


def test_states_restore_settings_and_copy_memory():
    p = Tensor([1.0, 2.0]).requires_grad_()
    p.grad, old = ones(2), Adam([p], lr=0.5, betas=(0.8, 0.9))
    old.step()
    new = Adam([p])
    new.load_state_dict(old.state_dict())
    assert new.param_groups[0]["lr"] == 0.5
    assert list(new.param_groups[0]["betas"]) == [0.8, 0.9]
    old.step()
    assert new.state_dict()["state"][0]["step"] == 1
    assert new.kept(p, "exp_avg").tolist() != old.kept(
        p, "exp_avg").tolist()


def test_a_state_of_pytorchs_is_taken_over():
    p = ones(2).requires_grad_()
    group = {"lr": 0.5, "momentum": 0.0, "dampening": 0, "foreach": None,
             "maximize": False, "params": [0]}
    optimizer = SGD([p], lr=0.1)
    state = {"state": {0: {"momentum_buffer": None}},
             "param_groups": [group]}
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0].keys() == (
        SGD([p]).param_groups[0].keys())
    assert optimizer.param_groups[0]["lr"] == 0.5
    group["maximize"] = True
    assert "maximize" in message(lambda: optimizer.load_state_dict(state))


def test_states_that_do_not_fit_change_nothing():
    p, q = (ones(n).requires_grad_() for n in (2, 3))
    p.grad, q.grad = ones(2), ones(3)
    two, one, ball = Adam([p, q]), Adam([q]), SGD([q], momentum=0.5)
    for optimizer in (two, one, ball):
        optimizer.step()
    before = str(one.state_dict())
    for state, words in (
            (two.state_dict(), "expected groups of [1] parameters"),
            (ball.state_dict(), "unknown setting ['momentum'"),
            (one.state_dict() | {"state": {"0": {"exp_avg": np.ones(3)}}},
             "expected tensors of that shape"),
            (one.state_dict() | {"state": {5: {}}}, "memory for [5]"),
            (Adam([p]).state_dict() | {"state": two.state_dict()["state"]},
             "exp_avg has shape (2,)")):
        state["state"].pop(1, None)
        assert words in message(lambda s=state: one.load_state_dict(s))
    assert str(one.state_dict()) == before


def test_only_parameters_with_gradients_move():
    a, b = Tensor([1.0]).requires_grad_(), Tensor([1.0]).requires_grad_()
    optimizer = AdamW([a, b], lr=0.1)
    (a * a).sum().backward()
    optimizer.step()
    assert a.item() != 1.0 and b.item() == 1.0
    optimizer.zero_grad()
    assert a.grad is None


def test_groups_have_settings_of_their_own():
    a, b = Tensor([1.0]).requires_grad_(), Tensor([1.0]).requires_grad_()
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    (a + b).sum().backward()
    optimizer.step()
    assert np.allclose([a.item(), b.item()], [0.9, 0.5])


def test_memory_is_none_one_or_two_times_the_parameters():
    for name, times in (("SGD", 0), ("momentum", 1), ("RMSprop", 1),
                        ("Adam", 2), ("AdamW", 2)):
        net, optimizer = one_step(MAKERS[name])
        weights = sum(4 * p.size for p in net.parameters())
        assert remembered(optimizer) == times * weights, name


def test_steps_sweep_no_more_than_they_did():
    found = {name: sweeps(make)[0] for name, make in MAKERS.items()}
    assert found == {"SGD": 7, "momentum": 14, "RMSprop": 26,
                     "Adam": 35, "AdamW": 39}, found


def test_decay_beside_the_gradient_is_what_was_asked_for():
    end = shaken(lambda p: AdamW(p, lr=1e-3, weight_decay=0.5))
    assert abs(end - (1 - 1e-3 * 0.5) ** 200) < 2e-3


def test_bad_requests_say_what_to_do():
    p = Tensor([1.0]).requires_grad_()
    assert "comes twice" in message(lambda: SGD([p, p]))
    assert "is computed" in message(lambda: SGD([p * 2]))
    assert "holds int64" in message(lambda: SGD([Tensor([1, 2])]))
    for given in [], p, [{"lr": 1.0}], [{"params": []}]:
        assert "a list of parameters" in message(
            functools.partial(SGD, given))
    assert "got a tuple" in message(lambda: SGD([("p", p)]), TypeError)
    assert "betas is 0.9" in message(lambda: Adam([p], betas=0.9))
    assert "eps is -1" in message(lambda: Adam([p], eps=-1))
    assert "above 0" in message(lambda: SGD([p], nesterov=True))
    assert "unknown setting ['speed']" in message(
        lambda: SGD([{"params": [p], "speed": 3}]))
    assert "lr is -1" in message(lambda: SGD([p], lr=-1))
    assert "betas is (0.9, 1.0)" in message(
        lambda: Adam([p], betas=(0.9, 1.0)))
