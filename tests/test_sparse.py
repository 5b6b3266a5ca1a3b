"""The sparse product beside PyTorch's, and its bench."""

import json
from importlib import import_module

import numpy as np
import pytest

from companion import timing
from companion.milestones import sparse_bench
from companion.native import POOL, set_threads


@pytest.fixture
def usual_threads():
    usual = POOL.threads
    yield
    set_threads(usual)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("density", [0, 0.02, 1])
@pytest.mark.parametrize("n", [1, 33])
def test_both_products_of_the_bench_agree(density, n, threads, usual_threads):
    torch = import_module("torch")
    before = torch.get_num_threads()
    ours, peers = [
        make(density, n, threads)()
        for make in (sparse_bench.our_product, sparse_bench.torch_product)
    ]
    torch.set_num_threads(before)
    # The bound is for a sum of 1024 products of normal numbers.
    np.testing.assert_allclose(ours, peers, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_the_bench_is_a_command(capsys):
    timing.main(["sparse", "--quick", "--threads", "1", "--json"])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    # On a loaded machine it has no times, and says why.
    assert line["bench"] == "sparse" and "density 10%" in line["case"]
    assert (line["ratio"] is None) == ("refused" in line)


def test_without_a_peer_nothing_is_guessed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = sparse_bench.bench(threads=1, quick=True)
    assert line["ours"] is line["peer"] is line["ratio"] is None
