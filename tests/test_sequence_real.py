"""The order of the models on the names that everybody trains on."""

import numpy as np
import pytest

from companion import (
    Adam,
    Batches,
    Embedding,
    Linear,
    Sequential,
    Tensor,
    cross_entropy,
    manual_seed,
    names,
    no_grad,
)
from companion.sequence import split_names

pytestmark = [pytest.mark.needs("datasets"), pytest.mark.slow]


def contexts(words):
    """The three letters before each letter, and the letter."""
    line = "".join(f"{word}..." for word in words)
    ids = np.frombuffer(line.encode(), np.uint8).astype(np.int64) - 96
    ids = np.maximum(ids, 0)  # the dot
    ids = np.concatenate([[0, 0, 0], ids])
    # Every letter, and the first dot behind a name.
    (at,) = (ids[2:] + ids[1:-1] > 0).nonzero()
    at = at[at > 0] + 2
    return ids[at[:, None] + [-3, -2, -1]], ids[at]


def test_what_is_asked():
    x, y = contexts(["ab", "c"])
    assert y.tolist() == [1, 2, 0, 3, 0]
    assert x.tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 2],
        [0, 0, 0],
        [0, 0, 3],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_three_letters_beats_counts(seed):
    learnt, held = split_names(names())
    x, y = contexts(learnt)
    held_x, held_y = contexts(held)
    counts = np.ones((27, 27))
    np.add.at(counts, (x[:, -1], y), 1)
    share = counts / counts.sum(-1, keepdims=True)
    counted = -np.log(share[held_x[:, -1], held_y]).mean()
    assert 2.4 < counted < 2.5

    manual_seed(seed)
    model = Sequential(
        Embedding(27, 16),
        lambda rows: rows.flatten(-2),
        Linear(48, 96),
        Tensor.tanh,
        Linear(96, 27),
    )
    optimizer = Adam(model.parameters(), lr=0.02)
    batches = Batches(Tensor(x), Tensor(y), size=1024, seed=seed)
    for _ in range(100):
        some, letters = next(batches)
        optimizer.zero_grad()
        cross_entropy(model(some), letters).backward()
        optimizer.step()
    with no_grad():
        loss = cross_entropy(model(Tensor(held_x)), Tensor(held_y)).item()
    assert loss < counted - 0.05
