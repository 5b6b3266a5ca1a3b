"""A hundred steps of every optimizer, each compared with PyTorch's."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import SGD, Adam, AdamW, RMSprop, Tensor

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

MAKERS = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW}
RATES = st.floats(1e-4, 1e-2)
PARTS = st.floats(0.1, 0.95)
DECAYS = st.sampled_from([0.0, 0.01, 0.1])
SETTINGS = {
    "SGD": {"lr": RATES, "weight_decay": DECAYS},
    "momentum": {
        "lr": RATES,
        "momentum": PARTS,
        "nesterov": st.booleans(),
        "weight_decay": DECAYS,
    },
    "RMSprop": {"lr": RATES, "alpha": PARTS, "eps": st.floats(1e-8, 1e-3)},
    "Adam": {
        "lr": RATES,
        "betas": st.tuples(PARTS, PARTS),
        "weight_decay": DECAYS,
    },
    "AdamW": {
        "lr": RATES,
        "betas": st.tuples(PARTS, PARTS),
        "weight_decay": DECAYS,
    },
}


def bent(p, q):
    """A loss with unequal, changing curvature, bounded below."""
    steps = p[1:] - p[:-1] * p[:-1]
    return (steps * steps).sum() + (1 - p[0]) ** 2 + (q * q).sum()


def trajectory(tensor, make, setting, dtype, slow):
    """All points of a hundred steps; q joins after the first thirty."""
    rng = np.random.default_rng(0)
    p = tensor(rng.uniform(-1, 1, 5).astype(dtype)).requires_grad_()
    q = tensor(rng.uniform(-1, 1, (2, 3)).astype(dtype)).requires_grad_()
    groups = [{"params": [p]}, {"params": [q], "lr": slow}]
    optimizer, points = make(groups, **setting), []
    for step in range(100):
        optimizer.zero_grad()
        loss = bent(p, q if step >= 30 else q.detach())
        loss.backward()
        optimizer.step()
        points.append([*p.tolist(), *sum(q.tolist(), [])])
    return np.array(points)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data(), slow=RATES)
def test_trajectories_equal_pytorchs(name, dtype, data, slow):
    import torch

    torch.set_num_threads(1)
    setting = data.draw(st.fixed_dictionaries(SETTINGS[name]))
    kind = "SGD" if name == "momentum" else name
    ours = trajectory(Tensor, MAKERS[kind], setting, dtype, slow)
    theirs = trajectory(
        torch.tensor, getattr(torch.optim, kind), setting, dtype, slow
    )
    unit = {"float32": 5e-3, "float64": 1e-9}[dtype]
    np.testing.assert_allclose(ours, theirs, rtol=unit, atol=unit)
