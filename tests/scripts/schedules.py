"""Warm-up, a cosine, and other schedules. As PyTorch's users type it."""

import math

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
total_steps, warmup_steps = 20, 5


def lr_lambda(step):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda)
x, w = torch.randn(64, 4), torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
y = x @ w
rates = []
for _step in range(total_steps):
    loss = ((model(x) - y) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rates.append(scheduler.get_last_lr()[0])
    scheduler.step()
second = torch.optim.SGD(model.parameters(), lr=1.0)
warm = torch.optim.lr_scheduler.LinearLR(
    second, start_factor=0.1, total_iters=5
)
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(second, T_max=15)
both = torch.optim.lr_scheduler.SequentialLR(
    second, schedulers=[warm, cosine], milestones=[5]
)
seen = []
for _step in range(20):
    second.step()
    both.step()
    seen.append(second.param_groups[0]["lr"])
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
    second, mode="min", factor=0.5, patience=1
)
for value in (1.0, 1.0, 1.0, 1.0):
    plateau.step(value)
cycle = torch.optim.lr_scheduler.OneCycleLR(
    torch.optim.SGD(model.parameters(), lr=0.1), max_lr=0.5, total_steps=10
)
for _ in range(9):
    cycle.step()
result = (
    abs(rates[4] - 0.1) < 1e-9
    and rates[-1] < 0.01
    and seen[4] == 1.0
    and seen[-1] < 1e-3
)
