"""A GPT beside PyTorch's: logits, gradients, and a run of training."""

import json

import numpy as np
import pytest

from companion import (
    AdamW,
    Generator,
    Tensor,
    clip_grad_norm_,
    manual_seed,
    randint,
)
from companion.milestones.gpt_bench import torch_logits
from companion.native import POOL, set_threads
from companion.optim import decay_groups
from companion.transformer import (
    CONFIGS,
    GPT,
    GPTConfig,
    next_token_loss,
)

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread():
    """Two pools of threads in one process wait for each other."""
    import torch

    ours, theirs = POOL.threads, torch.get_num_threads()
    set_threads(1)
    torch.set_num_threads(1)
    yield
    set_threads(ours)
    torch.set_num_threads(theirs)


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
        loss = next_token_loss(net, *[Tensor(r.numpy()) for r in (x, y)])
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


def reference(vocabulary, positions, layers, heads, width):
    """GPT-2 in PyTorch, its modules named as in Hugging Face's files."""
    import torch
    from torch import nn

    class Conv1D(nn.Module):
        """A linear layer whose matrix is (in, out)."""

        def __init__(self, ins, outs):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(ins, outs) * 0.3)
            self.bias = nn.Parameter(torch.randn(outs) * 0.3)

        def forward(self, x):
            return x @ self.weight + self.bias

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            mask = torch.ones(positions, positions).tril()
            self.register_buffer("bias", mask[None, None])
            self.c_attn = Conv1D(width, 3 * width)
            self.c_proj = Conv1D(width, width)

        def forward(self, x):
            q, k, v = [
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in self.c_attn(x).split(width, 2)
            ]
            scores = q @ k.mT / (width // heads) ** 0.5
            hidden = self.bias[..., : x.shape[1], : x.shape[1]] == 0
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            return self.c_proj((weights @ v).transpose(1, 2).flatten(2))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc = Conv1D(width, 4 * width)
            self.c_proj = Conv1D(4 * width, width)

        def forward(self, x):
            u = self.c_fc(x)
            inner = (2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)
            return self.c_proj(0.5 * u * (1 + torch.tanh(inner)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn = nn.LayerNorm(width), Attention()
            self.ln_2, self.mlp = nn.LayerNorm(width), MLP()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT2(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(vocabulary, width)
            self.wpe = nn.Embedding(positions, width)
            self.h = nn.ModuleList(Block() for _ in range(layers))
            self.ln_f = nn.LayerNorm(width)

        def forward(self, index):
            places = torch.arange(index.shape[1])
            x = self.wte(index) + self.wpe(places)
            for block in self.h:
                x = block(x)
            return self.ln_f(x) @ self.wte.weight.T

    return GPT2()


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_checkpoint_of_gpt2(tmp_path, prefix):
    """Written by modules of PyTorch, read by us: the same logits."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = reference(50, 12, 3, 4, 32)
    for p in theirs.parameters():
        p.data += torch.randn_like(p) * 0.1
    state = theirs.state_dict()
    state |= {"lm_head.weight": state["wte.weight"].clone()} if prefix else {}
    save_file(
        {prefix * (name[:2] != "lm") + name: x for name, x in state.items()},
        tmp_path / "model.safetensors",
    )
    said = {"n_positions": 12, "vocab_size": 50, "n_layer": 3, "n_head": 4}
    said |= {"n_embd": 32, "activation_function": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours = GPT.from_huggingface(tmp_path)
    index = torch.randint(0, 50, (2, 12))
    found = ours(Tensor(index.numpy())).numpy()
    expected = theirs(index).detach().numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(expected).max() > 1
