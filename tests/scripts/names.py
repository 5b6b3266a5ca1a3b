"""A recurrent network that writes names. As PyTorch's users type it."""

import string

import torch
from torch import nn

torch.manual_seed(0)
names = ["anna", "ben", "carla", "dora", "emil"]
letters = string.ascii_lowercase + "."
n_letters = len(letters)


def name_to_tensor(name):
    tensor = torch.zeros(len(name), 1, n_letters)
    for i, c in enumerate(name):
        tensor[i][0][letters.index(c)] = 1
    return tensor


class RNN(nn.Module):
    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.i2h = nn.Linear(input_size + hidden_size, hidden_size)
        self.h2o = nn.Linear(hidden_size, output_size)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, x, hidden):
        combined = torch.cat((x, hidden), 1)
        hidden = torch.tanh(self.i2h(combined))
        return self.softmax(self.h2o(hidden)), hidden

    def init_hidden(self):
        return torch.zeros(1, self.hidden_size)


rnn = RNN(n_letters, 16, n_letters)
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1, momentum=0.9)
losses = []
for _epoch in range(12):
    total = 0
    for name in names:
        hidden = rnn.init_hidden()
        line = name_to_tensor(name)
        targets = torch.tensor(
            [letters.index(c) for c in name[1:] + "."]
        ).unsqueeze(-1)
        optimizer.zero_grad()
        loss = torch.tensor(0.0)
        for i in range(line.size(0)):
            output, hidden = rnn(line[i], hidden)
            loss += criterion(output, targets[i])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rnn.parameters(), 5.0)
        optimizer.step()
        total += loss.item() / line.size(0)
    losses.append(total)
rnn.eval()
with torch.no_grad():
    hidden, out, word = rnn.init_hidden(), "a", ""
    for _ in range(5):
        output, hidden = rnn(name_to_tensor(out)[0], hidden)
        topv, topi = output.topk(1)
        out = letters[topi[0][0].item()]
        probs = torch.softmax(output.squeeze(0), dim=-1)
        drawn = torch.multinomial(probs, 1).item()
result = losses[-1] < losses[0] and 0 <= drawn < n_letters
