"""A GPT beside PyTorch's: logits, gradients, and a run of training."""

import numpy as np
import pytest

from companion import AdamW, Generator, clip_grad_norm_, manual_seed, randint
from companion.optim import decay_groups
from companion.transformer import (
    CONFIGS,
    GPT,
    GPTConfig,
    next_token_loss,
    torch_logits,
)

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]


def twin_of(net):
    """The same weights, as PyTorch's."""
    import torch

    return {
        name: torch.tensor(p.numpy()).requires_grad_()
        for name, p in net.state_dict().items()
    }


def torch_loss(state, config, x, y):
    import torch

    logits = torch_logits(state, config, torch.tensor(x.numpy()))
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(y.numpy()).flatten()
    )


@pytest.mark.parametrize("name", ["cpu", "biased", "gpt2 gelu"])
def test_gradients_of_all_parameters(name):
    """To 1e-5 of each one's largest, on the CPU configuration's sizes."""
    changes = {
        "cpu": {},
        "biased": {"bias": True},
        "gpt2 gelu": {"bias": True, "approximate": "tanh"},
    }[name]
    manual_seed(0)
    config = GPTConfig(**vars(CONFIGS["cpu"]) | changes)
    net = GPT(config)
    x, y = randint(0, 65, (2, 12, 64))
    loss, state = next_token_loss(net, x, y), twin_of(net)
    loss.backward()
    theirs = torch_loss(state, config, x, y)
    theirs.backward()
    assert abs(loss.item() - theirs.item()) < 1e-5
    for name, p in net.named_parameters():
        expected = state[name].grad.numpy()
        distance = np.abs(p.grad.numpy() - expected).max()
        assert distance <= 1e-5 * np.abs(expected).max(), name


def test_loss_curves_agree():
    """200 steps of clipping and AdamW from the same weights and windows."""
    import torch

    manual_seed(1)
    config = GPTConfig(16, 20, 2, 2, 32)
    net = GPT(config)
    state = twin_of(net)
    ours = AdamW(decay_groups(net, 0.1), lr=1e-3, betas=(0.9, 0.99))
    theirs = torch.optim.AdamW(
        [
            {"params": [p for p in state.values() if p.ndim >= 2]},
            {
                "params": [p for p in state.values() if p.ndim < 2],
                "weight_decay": 0.0,
            },
        ],
        lr=1e-3,
        betas=(0.9, 0.99),
        weight_decay=0.1,
    )
    draw = Generator(2)
    walk = randint(1, 4, (3000,), generator=draw).numpy().cumsum() % 20
    starts = randint(0, 2980, (200, 8), generator=draw).numpy()
    for step, at in enumerate(starts):
        rows = walk[at[:, None] + np.arange(17)]
        x, y = [torch.tensor(r) for r in (rows[:, :-1], rows[:, 1:])]
        ours.zero_grad()
        loss = next_token_loss(net, *[as_ours(r) for r in (x, y)])
        loss.backward()
        clip_grad_norm_(net.parameters(), 1.0)
        ours.step()
        theirs.zero_grad()
        expected = torch_loss(state, config, x, y)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(state.values(), 1.0)
        theirs.step()
        assert abs(loss.item() - expected.item()) < 2e-3, step
    assert loss.item() < 2


def as_ours(x):
    from companion import Tensor

    return Tensor(x.numpy())
