"""Two adversaries. As PyTorch's users type it."""

import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(
    nn.Linear(4, 16), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 2)
)
D = nn.Sequential(
    nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1)
)


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Linear") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.2)
        nn.init.constant_(m.bias.data, 0)


G.apply(weights_init)
D.apply(weights_init)
criterion = nn.BCEWithLogitsLoss()
optG = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
optD = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
for _step in range(20):
    real = torch.randn(32, 2) * 0.5 + 2
    noise = torch.randn(32, 4)
    fake = G(noise)
    D.zero_grad()
    label = torch.full((32, 1), 1.0)
    errD = criterion(D(real), label) + criterion(
        D(fake.detach()), torch.zeros_like(label)
    )
    errD.backward()
    optD.step()
    G.zero_grad()
    for p in D.parameters():
        p.requires_grad_(False)
    errG = criterion(D(fake), torch.ones(32, 1))
    errG.backward()
    for p in D.parameters():
        p.requires_grad = True
    optG.step()
result = torch.isfinite(errG).item() and not torch.isnan(errD).any()
