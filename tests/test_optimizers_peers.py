"""A hundred steps of every optimizer, each compared with PyTorch's.

Near a minimum some of these paths multiply every rounding (the chapter on
optimizers shows it), so whole paths are held to what PyTorch holds itself
to: its distance from a path of its own that begins one rounding away.  Single
steps from the same state must agree to the last digits.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from chapters import test_optimizers as page
from companion import SGD, Adam, AdamW, RMSprop, Tensor

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

MAKERS = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW}
RATES = st.floats(1e-4, 1e-2)
PARTS = st.floats(0.1, 0.95)
DECAYS = st.sampled_from([0.0, 0.01, 0.1])
BETAS = st.tuples(st.floats(0.5, 0.95), st.floats(0.8, 0.999))
SETTINGS = {
    "SGD": {"lr": RATES, "weight_decay": DECAYS},
    "momentum": {
        "lr": RATES,
        "momentum": PARTS,
        "nesterov": st.booleans(),
        "weight_decay": DECAYS,
    },
    "RMSprop": {
        "lr": RATES,
        "alpha": PARTS,
        "eps": st.floats(1e-8, 1e-3),
        "weight_decay": DECAYS,
    },
    "Adam": {"lr": RATES, "betas": BETAS, "weight_decay": DECAYS},
    "AdamW": {"lr": RATES, "betas": BETAS, "weight_decay": DECAYS},
}
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
GRID = [
    (SGD, {"lr": 5e-3, "weight_decay": decay, **ball})
    for decay, ball in itertools.product(
        (0.0, 0.1),
        ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    )
] + [
    (make, {"lr": 5e-3, "weight_decay": decay})
    for make, decay in itertools.product((RMSprop, Adam, AdamW), (0.0, 0.1))
]


def theirs(make):
    """PyTorch's optimizer of the same name."""
    import torch

    torch.set_num_threads(1)
    return getattr(torch.optim, make.__name__)


def torch_tensor(array):
    import torch

    return torch.tensor(array)


def bent(p, q):
    """A loss with unequal, changing curvature, bounded below."""
    steps = p[1:] - p[:-1] * p[:-1]
    return (steps * steps).sum() + (1 - p[0]) ** 2 + (q * q).sum()


def begin(dtype, nudge=0.0):
    rng = np.random.default_rng(0)
    p = rng.uniform(-1, 1, 5) * (1 + nudge)
    return p.astype(dtype), rng.uniform(-1, 1, (2, 3)).astype(dtype)


def prepared(tensor, make, setting, arrays, slow=1e-3):
    """Two parameters, and an optimizer with a group for each."""
    p, q = (tensor(a).requires_grad_() for a in arrays)
    groups = [{"params": [p]}, {"params": [q], "lr": slow}]
    return p, q, make(groups, **setting)


def walk(p, q, optimizer, steps):
    """The points visited at the steps of that range; q joins at 30."""
    points = []
    for step in steps:
        optimizer.zero_grad()
        loss = bent(p, q if step >= 30 else q.detach())
        loss.backward()
        optimizer.step()
        points.append([*p.tolist(), *sum(q.tolist(), [])])
    return np.array(points)


def compare(make, setting, dtype, slow):
    """Every step within a few times what a rounding does to PyTorch."""
    steps = range(100)
    ours = walk(*prepared(Tensor, make, setting, begin(dtype), slow), steps)
    expected, *twins = (
        walk(
            *prepared(
                torch_tensor, theirs(make), setting, begin(dtype, n), slow
            ),
            steps,
        )
        for n in (0.0, *(k * 2 * ROUNDING[dtype] for k in (-3, -1, 1, 3)))
    )
    unrest = np.max([np.abs(t - expected).max(axis=1) for t in twins], axis=0)
    allowed = 100 * ROUNDING[dtype] + 30 * np.maximum.accumulate(unrest)
    errors = np.abs(ours - expected).max(axis=1)
    assert (errors <= allowed).all(), (errors / allowed).max()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", ROUNDING)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data(), slow=RATES)
def test_trajectories_equal_pytorchs(name, dtype, data, slow):
    setting = data.draw(st.fixed_dictionaries(SETTINGS[name]))
    make = SGD if name == "momentum" else MAKERS[name]
    compare(make, setting, dtype, slow)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("make, setting", GRID)
def test_trajectories_of_the_grid_equal_pytorchs(make, setting, dtype):
    compare(make, setting, dtype, 1e-3)


def converted(state, tensor, skip=()):
    """A state dict with its arrays in the other library's tensors."""
    memory = {
        place: {
            name: value if name == "step" else tensor(value.numpy())
            for name, value in own.items()
            if value is not None
        }
        for place, own in state["state"].items()
    }
    groups = [
        {name: value for name, value in group.items() if name not in skip}
        for group in state["param_groups"]
    ]
    return {"state": memory, "param_groups": groups}


def unknown_here(optimizer):
    """PyTorch's settings that we do not have: how it runs, mostly."""
    known = {"params", "initial_lr", *optimizer.defaults}
    return lambda group: set(group) - known


@pytest.mark.parametrize("make, setting", GRID)
def test_every_single_step_from_pytorchs_state(make, setting):
    """Rounding must explain each step, also where paths part."""
    setting = setting | ({"alpha": 0.87} if make is RMSprop else {})
    p, q, their = prepared(
        torch_tensor, theirs(make), setting, begin("float64")
    )
    for step in range(100):
        a, b, own = prepared(
            Tensor, make, setting, [x.detach().numpy() for x in (p, q)]
        )
        skip = unknown_here(own)(their.param_groups[0])
        own.load_state_dict(converted(their.state_dict(), Tensor, skip))
        ours = walk(a, b, own, [step])
        expected = walk(p, q, their, [step])
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make, setting", GRID)
def test_a_run_begun_here_continues_in_pytorch(make, setting):
    whole = walk(
        *prepared(Tensor, make, setting, begin("float64")), range(60)
    )
    p, q, own = prepared(Tensor, make, setting, begin("float64"))
    walk(p, q, own, range(40))
    a, b, their = prepared(
        torch_tensor, theirs(make), setting, [x.numpy() for x in (p, q)]
    )
    state = converted(own.state_dict(), torch_tensor)
    for group, new in zip(their.param_groups, state["param_groups"]):
        new.update({k: v for k, v in group.items() if k not in new})
    for memory in state["state"].values():
        memory["step"] = torch_tensor(float(memory["step"]))
    their.load_state_dict(state)
    rest = walk(a, b, their, range(40, 60))
    np.testing.assert_allclose(rest, whole[40:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_record_of_the_chapter_is_pytorchs(dtype):
    golden = {"float32": page.GOLDEN32, "float64": page.GOLDEN64}[dtype]
    for (make, setting), expected in zip(page.SETTINGS, golden):
        p = torch_tensor(np.array(page.START, dtype)).requires_grad_()
        optimizer = theirs(make)([p], **setting)
        for _ in range(100):
            optimizer.zero_grad()
            page.curved(p).backward()
            optimizer.step()
        unit = {"float32": 3e-6, "float64": 1e-11}[dtype]
        np.testing.assert_allclose(p.tolist(), expected, rtol=unit)
