"""A checkpoint, and going on from it. As PyTorch's users type it."""

import io

import torch
import torch.nn.functional as F
from torch import nn


def build():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    )
    opt = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
    sched = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    return model, opt, sched


torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))


def run(model, opt, sched, n):
    for _ in range(n):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        sched.step()
    return loss


model, opt, sched = build()
run(model, opt, sched, 3)
checkpoint = {
    "epoch": 3,
    "model": model.state_dict(),
    "optimizer": opt.state_dict(),
    "scheduler": sched.state_dict(),
}
buffer = io.BytesIO()
torch.save(checkpoint, buffer)
buffer.seek(0)
loaded = torch.load(buffer, map_location="cpu", weights_only=True)
other, opt2, sched2 = build()
missing = other.load_state_dict(loaded["model"], strict=True)
opt2.load_state_dict(loaded["optimizer"])
sched2.load_state_dict(loaded["scheduler"])
a, b = run(model, opt, sched, 3), run(other, opt2, sched2, 3)
result = torch.allclose(a, b) and loaded["epoch"] == 3
