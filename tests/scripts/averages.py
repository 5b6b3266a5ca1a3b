"""A moving average of weights. As PyTorch's users type it."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
ema = copy.deepcopy(model).eval()
for p in ema.parameters():
    p.requires_grad_(False)


@torch.no_grad()
def update(ema, model, decay):
    for e, p in zip(ema.parameters(), model.parameters()):
        e.mul_(decay).add_(p, alpha=1 - decay)
    for (_name, e), (_, b) in zip(ema.named_buffers(), model.named_buffers()):
        e.copy_(b)


@torch.no_grad
def distance():
    return sum(
        (e - p).abs().sum().item()
        for e, p in zip(ema.parameters(), model.parameters())
    )


opt = torch.optim.RMSprop(model.parameters(), lr=1e-2)
x = torch.randn(32, 3)
y = x.sum(dim=1, keepdim=True)
for _ in range(20):
    loss = F.mse_loss(model(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    update(ema, model, 0.9)
with torch.inference_mode():
    after = F.mse_loss(ema(x), y)
result = distance() > 0 and after.item() > 0
