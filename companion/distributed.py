# Tangled from scaling: edit there, `make tangle`. sha256:c20c615daebb
from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from companion.autograd import GRADIENT, RECORDING, no_grad, remember
from companion.dtype import float64
from companion.layers import Linear, Module, parameter
from companion.native import POOL, set_threads
from companion.ops import Op
from companion.optim import Optimizer
from companion.tensor import Tensor
from companion.tensor.creation import zeros_like
from companion.timing import FORK
from companion.training import (
    Gradients, Journal, Observer, Trainer, clip_grad_norm_, journal_of)


class Lost(RuntimeError):
    """Another worker is gone, or says nothing."""


class Group:
    """The workers of a run; this one is `rank` of `size`. By itself, one.

    `send(x, to)` starts to send a row of numbers, and gives a function
    that returns when its memory may be written to. `recv(x, source)`
    fills a row of the same length. Neither waits longer than `patience`
    seconds: then it raises Lost. `aside` says whether both may be called
    in another thread than the first, as long as it is one at a time.
    """

    rank, size, patience, aside = 0, 1, 60.0, False

    def send(self, x: Any, to: int) -> Callable[[], Any]:
        raise Lost(f"there is no worker {to} in a group of one")

    def recv(self, x: Any, source: int) -> None:
        raise Lost(f"there is no worker {source} in a group of one")


ALONE = Group()


class Sockets(Group):
    """Workers with a pair of sockets between any two: `lines`, by rank."""

    aside = True

    def __init__(self, rank: int, lines: dict[int, socket.socket],
                 patience: float = 60.0):
        self.rank, self.size, self.patience = rank, len(lines) + 1, patience
        self.lines, self.hand = lines, ThreadPoolExecutor(1)
        for line in lines.values():
            line.settimeout(patience)

    def send(self, x: np.ndarray, to: int) -> Callable[[], Any]:
        return self.hand.submit(self.tell, x.view(np.uint8), to).result

    def tell(self, data: np.ndarray, to: int) -> None:
        with self.waiting_for(to):
            self.lines[to].sendall(HEAD.pack(data.nbytes))
            if data.nbytes:  # else the other may be done, and gone
                self.lines[to].sendall(data.data)

    def recv(self, x: np.ndarray, source: int) -> None:
        head = bytearray(HEAD.size)
        with self.waiting_for(source):
            filled(self.lines[source], head)
            check_length(self, x.nbytes, HEAD.unpack(head)[0], source)
            filled(self.lines[source], x.view(np.uint8))

    @contextmanager
    def waiting_for(self, other: int) -> Iterator[None]:
        """An error of a socket, in words."""
        try:
            yield
        except TimeoutError:
            raise Lost(silence(self, other)) from None
        except OSError:
            raise Lost(f"worker {other} is gone (told by worker "
                       f"{self.rank} of {self.size})") from None


HEAD = struct.Struct("q")  # before each message: how many bytes it has


def filled(line: socket.socket, memory: Any) -> None:
    """Read until the memory is full."""
    left = memoryview(memory)
    while left:
        count = line.recv_into(left)
        if not count:
            raise ConnectionError("the other end is closed")
        left = left[count:]


def silence(group: Group, other: int) -> str:
    return (f"worker {group.rank} has waited {group.patience:g} s for worker "
            f"{other}; all have to make the same calls in the same order")


def check_length(group: Group, wanted: int, got: int, source: int) -> None:
    if got != wanted:
        raise ValueError(
            f"worker {group.rank}: expected {wanted} bytes from worker "
            f"{source}, got {got}; are models and data the same on all?")


def connected(size: int) -> list[dict[int, socket.socket]]:
    """For each worker its ends of sockets, by the other's rank."""
    pairs = {(i, j): socket.socketpair() for i in range(size)
             for j in range(i)}
    return [{j: pairs[max(i, j), min(i, j)][i < j] for j in range(size)
             if j != i} for i in range(size)]


def heard(worker: Any, pipe: Any) -> Any:
    """A worker's last words, or what its end says."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # nothing, or half of a message
        worker.join(60)
        how = f"it ended with status {worker.exitcode}"
        return False, (False, 0.0), "killed", how, how


@contextmanager
def later_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and means there what it did."""
    # Python drops an error that comes in the middle of a fork. Threads
    # other than the first one never hear of the key, nor does a program
    # that was started to ignore it, as in the background of a shell.
    before = signal.getsignal(signal.SIGINT)
    first = threading.current_thread() is threading.main_thread()
    if not (first and callable(before)):
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


def spawn(size: int, work: Callable[..., Any], *args: Any,
          patience: float = 60.0) -> list[Any]:
    """`work(group, *args)` in so many processes: what they return.

    A worker's error is raised here, as a RuntimeError, and ends all.
    """
    if size < 1:
        raise ValueError(f"spawn: expected 1 worker or more, got {size}")
    lines = connected(size)
    pipes = [FORK.Pipe(duplex=False) for _ in range(size)]
    workers = [FORK.Process(target=worked, daemon=True, args=(
        i, lines, pipes, patience, work, args)) for i in range(size)]
    try:
        with later_interrupts():
            for worker in workers:
                worker.start()
        close(lines, pipes)
        return results(workers, [mine for mine, _ in pipes], patience)
    finally:
        close(lines, pipes)
        for worker in workers:
            if worker.pid:
                worker.kill()
                worker.join()
        for mine, _ in pipes:
            mine.close()


def worked(rank: int, lines: list[dict[int, socket.socket]], pipes: Any,
           patience: float, work: Callable[..., Any], args: Any) -> None:
    """In a worker's process: its result goes home, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent ends us
    # Others' ends: as long as we held them, nobody's end would be noticed.
    close([x for i, x in enumerate(lines) if i != rank],
          [x for i, x in enumerate(pipes) if i != rank])
    set_threads(max(1, POOL.threads // len(lines)))
    home = pipes[rank][1]
    try:
        group = Sockets(rank, lines[rank], patience)
        home.send((True, work(group, *args)))
    except BaseException as error:  # also SystemExit: somebody waits
        home.send((False, (isinstance(error, Lost), time.monotonic()),
                   type(error).__name__, str(error), traceback.format_exc()))


def close(lines: Iterable[dict[int, socket.socket]],
          pipes: Iterable[Any]) -> None:
    """Our copies of what belongs to the workers."""
    for line in lines:
        for end in line.values():
            end.close()
    for _, end in pipes:
        end.close()


def results(workers: Sequence[Any], pipes: list[Any],
            patience: float) -> list[Any]:
    """What each of them returned; else the error that was the first."""
    found: dict[int, Any] = {}
    limit: float | None = None  # until one fails they may take their time
    while len(found) < len(pipes):
        there = wait([pipe for i, pipe in enumerate(pipes)
                      if i not in found], limit)
        if not there:
            break
        found |= {i: heard(workers[i], pipe) for i, pipe
                  in enumerate(pipes) if pipe in there}
        if not all(done for done, *_ in found.values()):
            limit = 2 * patience  # by then the others have noticed
    failed = [(x[1], i, x[2:]) for i, x in found.items() if not x[0]]
    if failed:
        _, rank, (kind, text, trace) = min(failed)
        error = RuntimeError(f"worker {rank}: {kind}: {text}")
        error.add_note(trace)
        raise error
    return [found[i][1] for i in range(len(pipes))]


def part(n: int, i: int, size: int) -> slice:
    """The i-th of `size` parts of n places; they differ by one at most."""
    return slice(n * i // size, n * (i + 1) // size)


def reduce_scatter(group: Group, x: Any) -> Any:
    """Add up a row x (n,) of all workers; each has its part of the sum.

    In place: the rest of x is left half done. Patarasuk and Yuan (2009).
    """
    n, p = check_row(x), group.size
    inbox = x[:-(-n // p)].copy()  # as long as the longest part
    for step in range(p - 1):
        give, take = [part(n, (group.rank - step - k) % p, p) for k in (1, 2)]
        box = inbox[:take.stop - take.start]
        pass_on(group, x[give], box)
        x[take] += box
    return x[part(n, group.rank, p)]


def pass_on(group: Group, out: Any, into: Any) -> None:
    """One to the right, and what comes from the left."""
    sent = group.send(out, (group.rank + 1) % group.size)
    group.recv(into, (group.rank - 1) % group.size)
    sent()


def all_gather(group: Group, x: Any) -> None:
    """Of a row x (n,) each worker has its part; now all have all of it."""
    n, p = check_row(x), group.size
    for step in range(p - 1):
        give, take = [part(n, (group.rank - step - k) % p, p) for k in (0, 1)]
        pass_on(group, x[give], x[take])


def all_reduce(group: Group, x: Any) -> None:
    """The sum of a row x (n,) of all workers, in place, for everybody.

    To the last bit the same on all. A vote, too: numbers that are no
    numbers on one worker are none on any.
    """
    reduce_scatter(group, x)
    all_gather(group, x)


def check_row(x: Any) -> int:
    """The length of a row of numbers that lies in one piece."""
    if not hasattr(x, "flags"):
        raise TypeError(f"expected an array of NumPy's or CuPy's, got a "
                        f"{type(x).__name__}; np.array(x) makes one")
    if x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError(f"expected a row of numbers in one piece, got shape "
                         f"{x.shape}; x.reshape(-1) makes one, or a copy")
    return len(x)


def broadcast(group: Group, x: Any) -> None:
    """What worker 0 has in a row x (n,), for everybody."""
    check_row(x)
    if group.rank:
        group.recv(x, group.rank - 1)
    if group.rank + 1 < group.size:
        group.send(x, group.rank + 1)()


def barrier(group: Group) -> None:
    """Returns when all have called it."""
    all_reduce(group, np.zeros(1))


class Mpi(Group):
    """The processes that mpiexec has started, by mpi4py."""

    def __init__(self, comm: Any, patience: float = 60.0):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.patience, self.mpi = patience, import_module("mpi4py.MPI")
        self.aside = self.mpi.Query_thread() >= self.mpi.THREAD_SERIALIZED

    def send(self, x: np.ndarray, to: int) -> Callable[[], Any]:
        return partial(self.finish, self.comm.Isend(x.view(np.uint8), to), to)

    def recv(self, x: np.ndarray, source: int) -> None:
        request = self.comm.Irecv(x.view(np.uint8), source)
        check_length(self, x.nbytes, self.finish(request, source), source)

    def finish(self, request: Any, other: int) -> int:
        """Wait until it is done; how many bytes have come."""
        start, status = time.monotonic(), self.mpi.Status()
        try:
            while not request.Test(status):
                waited = time.monotonic() - start
                if waited > self.patience:
                    raise Lost(silence(self, other))
                # The other may need this processor.
                os.sched_yield() if waited < 1e-3 else time.sleep(1e-4)
        except self.mpi.Exception as error:  # such as a message too long
            raise ValueError(f"worker {self.rank}, with worker {other}: "
                             f"{error}; are models and data the same on "
                             f"all?") from None
        return status.count


STARTED = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}  # Open MPI's, MPICH's


@contextmanager
def world() -> Iterator[Group]:
    """The processes of mpiexec; without it, this one alone.

    An error inside the block ends all of them; sys.exit with a status
    other than 0 does, too, and gives it to mpiexec.
    """
    if not STARTED & os.environ.keys():
        yield ALONE
        return
    if find_spec("mpi4py") is None:
        raise RuntimeError("mpiexec started this, and mpi4py is missing: "
                           "pip install 'companion[mpi]'")
    comm = import_module("mpi4py.MPI").COMM_WORLD
    try:
        yield Mpi(comm)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not code:  # this one is done, and the others may go on
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif not isinstance(code, int):
            print(code, file=sys.stderr)
        sys.stderr.flush()
        comm.Abort(code if isinstance(code, int) else 1)


HERE = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm"}


def mpiexec() -> str | None:
    """Where mpiexec is, if mpi4py is installed as well."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=path) if find_spec("mpi4py") else None


def launch(size: int, *words: str,
           seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
    """`python WORDS…` in so many processes of this machine, by mpiexec.

    RuntimeError if there is none, or if it takes longer than `seconds`.
    """
    found = mpiexec()
    if found is None:
        raise RuntimeError("there is no MPI here: pip install "
                           "'companion[mpi]'")
    command = [found, "-n", str(size), sys.executable, *words]
    run = subprocess.Popen(command, text=True, env=os.environ | HERE,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = run.communicate(timeout=seconds)
    except BaseException as error:
        run.terminate()  # it ends the others; killed, it would not
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(
                f"mpiexec was not done after {seconds:g} s") from None
        raise
    return subprocess.CompletedProcess(command, run.returncode, out, err)


@cache
def no_mpi() -> str:
    """Why mpiexec starts no two processes here, in a line; "" if it does."""
    try:
        ran = launch(2, "-c", "from mpi4py.MPI import COMM_WORLD\n"
                              "COMM_WORLD.barrier()", seconds=120)
    except (OSError, RuntimeError) as error:
        return str(error)
    said = [x for x in ran.stderr.splitlines() if x.strip("- ")]
    return (f"mpiexec fails on this machine: {' '.join(said[:1])} (status "
            f"{ran.returncode})" if ran.returncode else "")


class Nccl(Group):
    """Workers with a card each, by CuPy's interface to NCCL.

    `group` brings them together. They wait on the card: the bound is
    NCCL's own. Tested on a stand-in only.
    """

    def __init__(self, group: Group):
        cuda = import_module("cupy").cuda
        self.nccl, self.stream = cuda.nccl, cuda.Stream.null.ptr
        self.rank, self.size = group.rank, group.size
        cuda.Device(group.rank % cuda.runtime.getDeviceCount()).use()
        own = self.nccl.get_unique_id() if group.rank == 0 else [0] * 128
        name = np.array(own, np.int64)
        broadcast(group, name)
        self.comm = self.nccl.NcclCommunicator(
            group.size, tuple(name.tolist()), group.rank)

    def send(self, x: Any, to: int) -> Callable[[], Any]:
        self.nccl.groupStart()
        self.comm.send(x.data.ptr, x.nbytes, self.nccl.NCCL_UINT8, to,
                       self.stream)
        return self.nccl.groupEnd

    def recv(self, x: Any, source: int) -> None:
        self.comm.recv(x.data.ptr, x.nbytes, self.nccl.NCCL_UINT8, source,
                       self.stream)


def buckets(parameters: Iterable[Tensor],
            most: int = 1 << 20) -> list[list[Tensor]]:
    """The tensors in groups of one dtype and `most` numbers or fewer.

    A tensor that is larger has a bucket to itself.
    """
    found: list[list[Tensor]] = []
    kind, room = None, 0
    for p in parameters:
        if p.dtype is not kind or p.size > room:
            found.append([])
            kind, room = p.dtype, most
        found[-1].append(p)
        room -= p.size
    return found


def sum_gradients(group: Group, parameters: Iterable[Tensor],
                  most: int = 1 << 17) -> None:
    """Each gradient becomes the sum of all workers'.

    Where a worker has none, it counts as zeros; where all have none, it
    stays so. Halves are added in float32.
    """
    with Sums(group, parameters, most):
        pass  # all are there


def packed(bucket: Sequence[Tensor]) -> np.ndarray:
    """Their gradients in a row; behind them, for each, whether there is
    one."""
    there = Tensor(np.array([p.grad is not None for p in bucket], np.float32))
    return row_of([zeros_like(p) if p.grad is None else p.grad
                   for p in bucket] + [there])


def unpack(x: np.ndarray, bucket: Sequence[Tensor]) -> None:
    """Give each its gradient from a row; none, where nobody had one."""
    gradients = pieces(x[:-len(bucket)], bucket)
    for p, g, count in zip(bucket, gradients, x[-len(bucket):]):
        if count:
            p.grad = Tensor(g, device=p.device).cast(p.dtype)


def row_of(tensors: Sequence[Tensor]) -> np.ndarray:
    """All their numbers in one row, of float32 at least."""
    wide = np.float64 if tensors[0].dtype is float64 else np.float32
    return np.concatenate([np.asarray(t.detach().numpy(), wide).reshape(-1)
                           for t in tensors])


def pieces(x: np.ndarray, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """A row in pieces of the shapes of tensors."""
    cuts = np.cumsum([t.size for t in tensors])[:-1]
    return [piece.reshape(t.shape)
            for piece, t in zip(np.split(x, cuts), tensors)]


@dataclass
class DataParallel(Trainer):
    """A Trainer whose batches are shared out among the workers of a group.

    Every worker reads the same batches, and computes its rows of them.
    They begin with worker 0's weights. Checkpoints are a Trainer's.
    """

    group: Group = field(default=ALONE, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        with no_grad():
            for p in self.model.parameters():
                x = p.numpy().reshape(-1).copy()
                broadcast(self.group, x)
                p.detach().assign(Tensor(x.reshape(p.shape)).to(p.device))

    def backward(self, *batch: Any,
                 finished: Callable[[Tensor], Any] | None = None) -> Tensor:
        """Add this worker's share of the gradient; of the loss, too."""
        n, group = len(batch[0]), self.group
        if n < group.size:
            raise ValueError(f"DataParallel: {n} rows for {group.size} "
                             f"workers; expected a batch with one for each")
        mine = part(n, group.rank, group.size)
        loss = self.loss_of(self.model, *[t[mine] for t in batch])
        share = (mine.stop - mine.start) / n / self.accumulate
        (loss * share).backward(finished=finished)
        return loss.detach() * share

    def sweep(self, batches: list[tuple[Any, ...]],
              ) -> tuple[Tensor, Tensor, Gradients]:
        self.optimizer.zero_grad()
        parameters, (*first, last) = list(self.model.parameters()), batches
        parts = [self.backward(*batch) for batch in first]
        with Sums(self.group, parameters) as sums:
            parts.append(self.backward(*last, finished=sums.done))
        loss = np.array([sum([part.item() for part in parts])])
        all_reduce(self.group, loss)
        norm = clip_grad_norm_(parameters, self.clip)
        return Tensor(loss[0]), norm, [p.grad for p in parameters]

    def fit(self, steps: int, checkpoint: str | Path | None = None,
            every: int = 100) -> list[dict[str, float]]:
        self.observers.append(Together(self.group))  # after all others
        try:
            return super().fit(steps, checkpoint, every)
        finally:
            self.observers.pop()

    def save(self, path: str | Path) -> None:
        if self.group.rank:
            self.state_dict()  # an optimizer may be shared out
        else:
            super().save(path)
        barrier(self.group)

    def note(self, path: Path) -> Journal:
        """Only worker 0 keeps a journal."""
        if self.group.rank:
            return Journal(journal_of(path))
        return super().note(path)

    def resume(self, path: str | Path) -> bool:
        # One clears up, before any other looks.
        if self.group.rank == 0:
            for left in Path(path).parent.glob(f".{Path(path).name}.*"):
                left.unlink()
        barrier(self.group)
        return super().resume(path)


@dataclass(eq=False)
class Together(Observer):
    """Where one worker stops, all do."""

    group: Group

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        votes = np.array([float(run.stopped)])
        all_reduce(self.group, votes)
        run.stopped = bool(votes[0])


def parallel(run: Trainer, group: Group) -> DataParallel:
    """The same run on the workers of a group; before its first step."""
    if "sweep" in vars(run):
        raise ValueError("parallel: this run's steps are captured programs, "
                         "which know of no other worker; choose a device "
                         "that is not lazy")
    given = {f.name: getattr(run, f.name) for f in fields(Trainer)}
    return DataParallel(**given, group=group)


class Sharded(Optimizer):
    """An optimizer of which each worker keeps its part (ZeRO-1).

    Of each group of `optimizer`, whose rule has to treat every number by
    itself, as ours do. Its state is the unsharded optimizer's.
    """

    def __init__(self, optimizer: Optimizer, group: Group):
        self.whole, self.group = optimizer, group
        self.param_groups = optimizer.param_groups
        for g in self.param_groups:
            if len({p.dtype for p in g["params"]}) > 1:
                raise ValueError("Sharded: expected parameters of one dtype "
                                 "in each group; make a group for each")
        self.own = type(optimizer)([
            g | {"params": [self.mine(g["params"])]}
            for g in self.param_groups])

    def mine(self, tensors: Sequence[Tensor]) -> Tensor:
        """This worker's part of the row of tensors."""
        x, first = row_of(tensors), tensors[0]
        here = part(len(x), self.group.rank, self.group.size)
        return Tensor(x[here], device=first.device).cast(first.dtype)

    def step(self) -> None:
        pairs = list(zip(self.param_groups, self.own.param_groups))
        for g, own in pairs:
            (shard,), whole = own["params"], g["params"]
            if none := [p.shape for p in whole if p.grad is None]:
                raise ValueError(f"Sharded: no gradient for parameters of "
                                 f"shapes {none}; expected one for each")
            own.update(g | {"params": [shard]})
            shard.assign(self.mine(whole))
            shard.grad = self.mine([p.grad for p in whole])
        self.own.step()
        with no_grad():
            for g, own in pairs:
                x = self.gathered(own["params"][0], g["params"])
                for p, new in zip(g["params"], pieces(x, g["params"])):
                    p.assign(Tensor(new, device=p.device).cast(p.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of what this worker remembers."""
        return sum(x.size * x.dtype.itemsize for own in
                   self.own.state.values() for x in own.values()
                   if isinstance(x, Tensor))

    def gathered(self, shard: Tensor,
                 whole: Sequence[Tensor]) -> np.ndarray:
        """The row of which each worker has its part."""
        x = np.empty(sum(p.size for p in whole),
                     np.float64 if shard.dtype is float64 else np.float32)
        x[part(len(x), self.group.rank, self.group.size)] = shard.numpy()
        all_gather(self.group, x)
        return x

    def state_dict(self) -> dict[str, Any]:
        """As of the whole optimizer; every worker has to ask."""
        for g, own in zip(self.param_groups, self.own.param_groups):
            memory, whole = self.own.state.get(own["params"][0]), g["params"]
            for name, x in (memory or {}).items():
                values = ([x] * len(whole) if name == "step" else
                          [Tensor(y, device=p.device).cast(p.dtype)
                           for p, y in zip(whole, pieces(
                               self.gathered(x, whole), whole))])
                for p, value in zip(whole, values):
                    self.whole.state.setdefault(p, {})[name] = value
        found = self.whole.state_dict()
        self.whole.state = {}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.whole.load_state_dict(state)
        self.param_groups, self.own.state = self.whole.param_groups, {}
        for g, own in zip(self.param_groups, self.own.param_groups):
            memory = [self.whole.state.get(p, {}) for p in g["params"]]
            if len(steps := {m.get("step", 0) for m in memory}) > 1:
                raise ValueError(
                    f"Sharded: the parameters of a group have made "
                    f"{sorted(steps)} steps; expected as many for all")
            if all(memory):
                self.own.state[own["params"][0]] = {
                    name: first if name == "step" else
                    self.mine([m[name] for m in memory])
                    for name, first in memory[0].items()}
        self.whole.state = {}


CROSS = Op("CROSS", 1)


def cross(x: Tensor, group: Group, there: bool) -> Tensor:
    """x, added up over all workers on the way there, or else on the way
    back; on the other way it passes as it is."""
    y = x.detach()
    if there:
        row = row_of([x])
        all_reduce(group, row)
        y = Tensor(row.reshape(x.shape), device=x.device).cast(x.dtype)
    if x.requires_grad and RECORDING.get():
        remember(y, CROSS, (x,), (group, there))
    return y


GRADIENT[CROSS] = (
    lambda g, y, x, arg: cross(g, arg[0], not arg[1]),)


class ColumnParallel(Module):
    """This worker's outputs of a Linear: (…, in) to (…, out / size)."""

    def __init__(self, whole: Linear, group: Group):
        mine = part(whole.out_features, group.rank, group.size)
        self.group, bias = group, whole.bias
        self.weight = parameter(whole.weight.detach()[mine].clone())
        self.bias = (None if bias is None
                     else parameter(bias.detach()[mine].clone()))

    def forward(self, x: Tensor) -> Tensor:
        y = cross(x, self.group, there=False) @ self.weight.T
        return y if self.bias is None else y + self.bias


class RowParallel(Module):
    """A Linear of inputs that are shared out: (…, in / size) to (…, out),
    the same for all."""

    def __init__(self, whole: Linear, group: Group):
        mine = part(whole.in_features, group.rank, group.size)
        self.group, bias = group, whole.bias
        self.weight = parameter(whole.weight.detach()[:, mine].clone())
        self.bias = None if bias is None else parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = cross(x @ self.weight.T, self.group, there=True)
        return y if self.bias is None else y + self.bias


class Cost(NamedTuple):
    """Seconds for a message, and for each of its bytes."""

    latency: float
    per_byte: float

    def all_reduce(self, size: int, nbytes: float) -> float:
        """Seconds of a ring (Hockney's model of a message, 1994)."""
        return 2 * (size - 1) * (
            self.latency + nbytes / size * self.per_byte)


def fitted(rows: Sequence[tuple[int, int, float]]) -> Cost:
    """The costs that explain (size, bytes, seconds) best, relatively."""
    size, nbytes, seconds = np.array(rows, float).T
    steps = 2 * (size - 1)
    sides = np.stack([steps, steps * nbytes / size]) / seconds
    answer = np.linalg.lstsq(sides.T, np.ones(len(rows)), rcond=None)[0]
    return Cost(*np.maximum(answer, 0).tolist())


def clocked(group: Group, reduce: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, among `calls` that all workers make together."""
    reduce()
    barrier(group)
    start = time.perf_counter()
    for _ in range(calls):
        reduce()
    return (time.perf_counter() - start) / calls


def all_reduces(group: Group, sizes: Sequence[int],
                rounds: int = 7) -> list[tuple[int, int, float]]:
    """(workers, bytes, seconds) of rows of float32, the shortest each."""
    found = []
    for n in sizes:
        x = np.zeros(n, np.float32)
        calls = max(1, min(20, (1 << 20) // n))
        found.append((group.size, x.nbytes, min(
            clocked(group, partial(all_reduce, group, x), calls)
            for _ in range(rounds))))
    return found


class Sums:
    """Adds up gradients over all workers, beside a backward that goes on.

    Inside the block say `done(p)` when p's gradient is complete, and do
    not talk to the group. Behind it they are sums, as of sum_gradients.
    """

    def __init__(self, group: Group, parameters: Iterable[Tensor],
                 most: int = 1 << 17):
        wanted = [p for p in parameters if p.requires_grad]
        self.group, self.open = group, set(map(id, wanted))
        self.waiting = deque(buckets(wanted[::-1], most))
        self.sent: list[tuple[list[Tensor], np.ndarray, Future[None]]] = []

    def done(self, p: Tensor) -> None:
        self.open.discard(id(p))
        while self.waiting and self.open.isdisjoint(map(id, self.waiting[0])):
            self.start()

    def start(self) -> None:
        """Send the next bucket."""
        bucket = self.waiting.popleft()
        x = packed(bucket)
        self.sent.append((bucket, x, self.hand.submit(
            all_reduce, self.group, x)))

    def __enter__(self) -> Sums:
        self.hand = ThreadPoolExecutor(1) if self.group.aside else AtOnce()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            while self.waiting and kind is None:
                self.start()
            for bucket, x, added in self.sent if kind is None else ():
                added.result()
                unpack(x, bucket)
        finally:  # what has not begun does not; what has, comes to its end
            self.hand.shutdown(cancel_futures=True)


class AtOnce(Executor):
    """Does what it is given before it answers, in the same thread."""

    def submit(self, work: Callable[..., Any], /, *args: Any,
               **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **options))
        return future
