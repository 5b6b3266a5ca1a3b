# Tangled from sequences, vocabulary: edit there, `make tangle`. sha256:aedbaab87000  # noqa: E501
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from companion.device import CPU, Device
from companion.dtype import DType, float32
from companion.layers import Module, check_features, parameter
from companion.tensor import Tensor
from companion.tensor.creation import zeros
from companion.tensor.indexing import stack
from companion.tensor.random import GENERATOR, Generator, rand
from companion.tokenizer import CharTokenizer


def split_names(people: Iterable[str],
                longest: int = 10) -> tuple[list[str], list[str]]:
    """Names to learn from, and every tenth held back; each once."""
    once = [name for name in dict.fromkeys(people) if len(name) <= longest]
    return [name for i, name in enumerate(once) if i % 10], once[::10]


LETTERS = CharTokenizer(".abcdefghijklmnopqrstuvwxyz")


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows of ids as one tensor (N, T), filled up at their ends."""
    if not rows:
        raise ValueError("padded: expected at least one row, got none")
    longest = max(map(len, rows))
    return Tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def next_letters(words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What is read (N, T), and what comes next; -100 for nothing."""
    ids = [LETTERS.encode(word) for word in words]
    return (padded([[0, *row] for row in ids]),
            padded([[*row, 0] for row in ids], -100))


def sample(logits: Tensor, temperature: float = 1.0,
           generator: Generator = GENERATOR) -> Tensor:
    """A class drawn from softmax(logits / temperature), (…, C) -> (…).

    By Gumbel's noise, on the device of the logits. A lower temperature
    makes what is likely more likely.
    """
    if not temperature > 0:
        raise ValueError(f"sample: expected a temperature above 0, got "
                         f"{temperature}; argmax(-1) is what 0 would mean")
    u = rand(*logits.shape, device=logits.device, generator=generator)
    # u may be 0. Its noise is -infinity, which is never the largest.
    noise = -(-u.log()).log()
    return (logits / temperature + noise).argmax(-1)


class RNNCell(Module):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh) (Elman, 1990).

    x (…, input_size) and h (…, hidden_size), zeros if not given.
    Weights are uniform in ± 1 / sqrt(hidden_size).
    """

    gates = 1

    def __init__(self, input_size: int, hidden_size: int,
                 bias: bool = True, dtype: DType = float32,
                 device: Device | str = CPU):
        self.input_size, self.hidden_size = input_size, hidden_size
        rows, bound = self.gates * hidden_size, hidden_size ** -0.5

        def drawn(*shape: int) -> Tensor:
            u = rand(*shape, dtype=dtype, device=device)
            return parameter((u * 2 - 1) * bound)

        self.weight_ih = drawn(rows, input_size)
        self.weight_hh = drawn(rows, hidden_size)
        self.bias_ih = drawn(rows) if bias else None
        self.bias_hh = drawn(rows) if bias else None

    def read(self, x: Tensor) -> Tensor:
        """What x (…, input_size) brings: (…, gates · hidden_size)."""
        return affine(x, self.weight_ih, self.bias_ih)

    def recall(self, h: Tensor) -> Tensor:
        """What the state brings, likewise."""
        return affine(h, self.weight_hh, self.bias_hh)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """The next state, from what has been read and the last."""
        return (x + self.recall(h)).tanh()

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        check_features(self, x, (self.input_size,))
        shape = (*x.shape[:-1], self.hidden_size)
        return self.step(self.read(x), first_state(self, x, h, shape))


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.T
    return y if bias is None else y + bias


def first_state(layer: Module, x: Tensor, h: Tensor | None,
                shape: tuple[int, ...]) -> Tensor:
    """`h` if it has this shape; zeros beside `x` if there is none."""
    if h is None:
        return zeros(*shape, dtype=x.dtype, device=x.device)
    # A state of another batch would be broadcast in silence.
    if h.shape != shape:
        raise ValueError(
            f"{type(layer).__name__}: expected a state of shape {shape} for "
            f"an input of shape {x.shape}, got {h.shape}")
    return h


def unbind(x: Tensor, axis: int = 0) -> list[Tensor]:
    """The slices of x along an axis, without it."""
    return x.unbind(axis)


def unroll(cell: RNNCell, x: Tensor, h: Tensor) -> Tensor:
    """All states (…, T, hidden_size) of a cell over x, from h on."""
    states = []
    for read in unbind(cell.read(x), -2):
        h = cell.step(read, h)
        states.append(h)
    return stack(states, -2)


class RNN(Module):
    """Layers of cells over x (…, T, input_size).

    `rnn(x, h)` answers the last layer's states (…, T, hidden_size) and
    the last state of each layer (num_layers, …, hidden_size). Such an h
    may be given to go on from; without one they begin at zero. The batch
    comes first, as it does in all layers.
    """

    cell: type[RNNCell] = RNNCell

    def __init__(self, input_size: int, hidden_size: int,
                 num_layers: int = 1, bias: bool = True,
                 batch_first: bool = True,
                 dtype: DType = float32, device: Device | str = CPU):
        if not batch_first:
            raise ValueError(f"{type(self).__name__}: expected "
                             f"batch_first=True; type x.transpose(0, 1)")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers = num_layers
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        self.layers = [self.cell(size, hidden_size, bias, dtype, device)
                       for size in sizes]

    def named_tensors(self, prefix: str = "") -> Iterator[
            tuple[str, Tensor]]:
        """weight_ih_l0 and so on, as in PyTorch's files."""
        for i, layer in enumerate(self.layers):
            for name, tensor in layer.named_tensors(prefix):
                yield f"{name}_l{i}", tensor

    def forward(self, x: Tensor, h: Tensor | None = None,
                ) -> tuple[Tensor, Tensor]:
        check_features(self, x, (self.input_size,))
        if x.ndim < 2 or not x.shape[-2]:
            raise ValueError(f"{type(self).__name__}: expected (…, T, "
                             f"{self.input_size}) with T of at least 1, "
                             f"got {x.shape}")
        shape = (self.num_layers, *x.shape[:-2], self.hidden_size)
        last = []
        for layer, start in zip(self.layers, first_state(self, x, h, shape)):
            x = unroll(layer, x, start)
            last.append(x[..., -1, :])
        return x, stack(last)


class GRUCell(RNNCell):
    """h' = n + z (h - n), gated by r and z (Cho et al., 2014).

    Rows of the weights: r, z, n. As in PyTorch, r gates what the state
    brings to n after the product, b_hn included.
    """

    gates = 3

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        n = self.hidden_size
        x_gates, x_new = x.split([2 * n, n], -1)
        h_gates, h_new = self.recall(h).split([2 * n, n], -1)
        r, z = (x_gates + h_gates).sigmoid().split(n, -1)
        new = (x_new + r * h_new).tanh()
        return new + z * (h - new)


class GRU(RNN):
    """RNN with gated cells: see GRUCell."""

    cell = GRUCell
