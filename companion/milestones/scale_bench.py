# Tangled from scaling: edit there, `make tangle`. sha256:9ab965c00af4
"""All-reduces beside gloo's, and training steps, on two processes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from companion.data import DataLoader
from companion.distributed import (
    DataParallel, Group, all_reduce, clocked, launch, no_mpi, spawn)
from companion.optim import AdamW
from companion.tensor.random import manual_seed, randint
from companion.timing import MISSING, stamp, turns
from companion.transformer import CONFIGS, GPT, next_token_loss, windows


def speed(group: Group, batch: int = 12, steps: int = 8) -> float:
    """Tokens a second of all workers, each with `batch` rows of its own."""
    config = CONFIGS["cpu"]
    manual_seed(0)
    model = GPT(config)
    ids = randint(0, config.vocab_size, (5000,)).numpy()
    batches = DataLoader(windows(ids, config.block_size), shuffle=True,
                         batch_size=batch * group.size)
    run = DataParallel(model, AdamW(model.parameters()), batches,
                       next_token_loss, group=group)
    run.fit(steps)
    best = min(row["seconds"] for row in run.history[2:])
    return group.size * batch * config.block_size / best


ROWS = {"4 KB": 1 << 10, "256 KB": 1 << 16, "4 MB": 1 << 20,
        "32 MB": 1 << 23}


@contextmanager
def gloo(group: Group, store: str) -> Iterator[Callable[..., Any] | None]:
    """PyTorch's all-reduce among the same workers; `store`: a new file."""
    if not find_spec("torch"):
        yield None
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch: Any = import_module("torch")
    talk = import_module("torch.distributed")
    torch.set_num_threads(1)
    talk.init_process_group("gloo", init_method=f"file://{store}",
                            rank=group.rank, world_size=group.size)
    yield lambda x: talk.all_reduce(torch.from_numpy(x))
    talk.destroy_process_group()  # its thread would outlive Python, and fall


def races(group: Group, store: str, quick: bool) -> list[dict]:
    """Our all-reduce beside gloo's: lines of a bench, in GB/s."""
    with gloo(group, store) as peer:
        rows = list(ROWS.items())[:3 if quick else 4]
        return [{"case": f"all-reduce of {name}",
                 **race(group, n, peer, quick)} for name, n in rows]


def race(group: Group, n: int, peer: Callable[..., Any] | None,
         quick: bool) -> Mapping[str, Any]:
    """Both on n numbers; what there is without a peer."""
    if not peer:
        return MISSING
    x, calls = np.zeros(n, np.float32), max(2, min(400, (1 << 23) // n))
    ours, theirs = [partial(clocked, group, add, calls) for add in (
        partial(all_reduce, group, x), partial(peer, x))]
    return turns(ours, theirs, 7 if quick else 15).line(
        lambda s: x.nbytes / s / 1e9)


def by_mpi(work: str, *args: Any) -> Any:
    """What worker 0 of two gets from a function of this file."""
    code = (f"import json\nfrom companion.distributed import world\n"
            f"from companion.milestones.scale_bench import {work}\n"
            f"with world() as group:\n"
            f"    found = {work}(group, *{args!r})\n"
            f"    if group.rank == 0:\n"
            f"        print(json.dumps(found))")
    ran = launch(2, "-c", code)
    if ran.returncode:
        raise RuntimeError(f"mpiexec: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def by_sockets(work: str, *args: Any) -> Any:
    return spawn(2, globals()[work], *args)[0]


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """GB/s of an all-reduce, and tokens a second, on two processes."""
    line = {"bench": "scale", "threads": threads, "unit": "GB/s",
            **stamp("torch")}
    ways = {"sockets": by_sockets, "MPI": by_mpi}
    if reason := no_mpi():
        del ways["MPI"]
        print(f"scale: {reason}", file=sys.stderr)
    single = spawn(1, speed)[0]
    own = {**line, **MISSING, "peer_name": None, "unit": "tokens/s"}
    yield {**own, "case": "1 process", "ours": single}
    for name, run in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            for found in run("races", f"{folder}/store", quick):
                yield {**line, **found, "case": f"{found['case']}, {name}"}
        both = run("speed")
        yield {**own, "case": f"2 processes, {name}", "ours": both,
               "limit_fraction": both / single / 2}
        yield {**own, "case": f"efficiency of 2, {name}", "unit": "",
               "ours": both / single / 2}
