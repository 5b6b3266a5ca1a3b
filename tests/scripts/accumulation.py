"""Gradients of several batches for one step. As PyTorch's users type it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(5, 16), nn.GELU(), nn.Dropout(p=0.1), nn.Linear(16, 3)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
dataset = TensorDataset(torch.randn(64, 5), torch.randint(3, size=(64,)))
train_set, val_set = random_split(
    dataset, [48, 16], generator=torch.Generator().manual_seed(0)
)
loader = DataLoader(
    train_set,
    batch_size=8,
    shuffle=True,
    num_workers=0,
    drop_last=True,
    pin_memory=False,
)
accum_steps = 3
optimizer.zero_grad()
steps = 0
for _epoch in range(2):
    for i, (xb, yb) in enumerate(loader):
        xb, yb = (
            xb.to("cpu", non_blocking=True),
            yb.to("cpu", non_blocking=True),
        )
        loss = (
            F.cross_entropy(model(xb), yb, label_smoothing=0.1) / accum_steps
        )
        loss.backward()
        if (i + 1) % accum_steps == 0:
            norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), max_norm=1.0
            )
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
model.eval()
correct = total = 0
with torch.no_grad():
    for xb, yb in DataLoader(val_set, batch_size=16):
        pred = model(xb).argmax(dim=1)
        correct += pred.eq(yb).sum().item()
        total += yb.size(0)
result = steps == 4 and total == 16 and torch.is_tensor(norm)
