"""The loaders on the files that everybody trains on."""

import numpy as np
import pytest

from companion import cifar10, mnist, names, shakespeare

pytestmark = pytest.mark.needs("datasets")


@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_mnist(split, n):
    data = mnist(split)
    images, labels = [column.numpy() for column in data.columns]
    assert data.source == "MNIST"
    assert images.shape == (n, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (n,) and labels.dtype == np.int64
    first = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}[split]
    assert labels[:5].tolist() == first
    assert (images.max(), images.min(), labels.max()) == (255, 0, 9)


@pytest.mark.parametrize("split, n", [("train", 50_000), ("test", 10_000)])
def test_cifar10(split, n):
    data = cifar10(split)
    images, labels = [column.numpy() for column in data.columns]
    assert data.source == "CIFAR-10"
    assert images.shape == (n, 3, 32, 32) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [n // 10] * 10
    red, green, blue = images.mean((0, 2, 3))
    assert red > green > blue > 100


def test_texts():
    play, first = shakespeare(), names()
    assert len(play) == 1_115_394 and play.startswith("First Citizen:")
    assert len(first) == 32_033 and first[:3] == ["emma", "olivia", "ava"]
    assert all(name.isalpha() and name.islower() for name in first)
