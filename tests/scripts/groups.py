"""Groups with and without weight decay. As PyTorch's users type it."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.heads = nn.ModuleDict(
            {"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)}
        )
        self.register_parameter("gain", nn.Parameter(torch.ones(1)))

    def forward(self, x, head):
        x = self.norm(self.embed(x))
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return self.heads[head](x.mean(dim=1)) * self.gain


net = Net()
decay, no_decay = [], []
for name, p in net.named_parameters():
    if not p.requires_grad:
        continue
    if p.ndim <= 1 or name.endswith(".bias"):
        no_decay.append(p)
    else:
        decay.append(p)
optimizer = torch.optim.AdamW(
    [
        {"params": decay, "weight_decay": 0.1},
        {"params": no_decay, "weight_decay": 0.0},
    ],
    lr=1e-3,
    betas=(0.9, 0.95),
    eps=1e-8,
)
extra = nn.Linear(3, 1)
optimizer.add_param_group({"params": extra.parameters(), "lr": 1e-2})
tokens = torch.randint(0, 10, (6, 5))
out = extra(net(tokens, "b")).sum()
out.backward()
grads = [p.grad.norm() for p in net.parameters() if p.grad is not None]
total = torch.norm(torch.stack(grads), 2)
optimizer.step()
kinds = {type(m).__name__ for m in net.modules()}
leaves = [n for n, m in net.named_modules() if not list(m.children())]
names = [n for n, _ in net.named_children()]
torch.nn.utils.clip_grad_value_(net.parameters(), 0.5)
result = (
    len(optimizer.param_groups) == 3
    and total.item() > 0
    and "Embedding" in kinds
    and "heads.a" in leaves
    and "embed" in names
    and optimizer.param_groups[2]["lr"] == 1e-2
)
