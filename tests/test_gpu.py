"""Every primitive on a device with memory of its own, beside the CPU."""

import copy
import operator
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import stand_in

from companion.buffer import Buffer, adopt
from companion.cuda import (
    CUBLAS,
    PROCESSORS,
    Card,
    Emulator,
    Operand,
    column_major,
    kernel_names,
    occupancy,
    races,
    set_float32_matmul_precision,
    trace,
    traffic,
    usage,
)
from companion.device import CPU, DEVICES, READERS, named
from companion.dtype import DTYPES, bool_, float32, int8, int64
from companion.gpu import (
    AXIS,
    CARDS,
    CUDA_CODE,
    CUDA_MEMORY,
    GPU,
    LAUNCH,
    OutOfMemory,
    block,
    connect,
    matrix,
    measured,
    prefetch,
    program,
    program_text,
    spelled,
    walk_struct,
)
from companion.ops import (
    ADD,
    ATTENTION,
    ATTENTION_GRADIENT,
    CAST,
    CONV,
    EXPAND,
    FAMILIES,
    FLIP,
    GATHER,
    IDIV,
    MATMUL,
    MAX,
    MOD,
    PAD,
    PERMUTE,
    RANDOM,
    RESHAPE,
    SCATTER,
    SHRINK,
    SIN,
    SUM,
    WHERE,
    WRITE,
)
from companion.tensor import Tensor, wrap
from companion.tensor.creation import ones, zeros
from companion.tensor.random import rand
from companion.timing import best
from companion.view import View

WHERE_TO_RUN = ["emulated", "stand-in",
                pytest.param("cuda", marks=pytest.mark.needs("gpu"))]
FLOATS = ("float16", "bfloat16", "float32", "float64")
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5,
             "float64": 1e-12}
SHAPES = [(), (1,), (7,), (0, 3), (3, 4), (33, 65), (2, 3, 1, 5)]


def stand_in_card():
    """A Card that talks to our stand-in for CuPy."""
    card = Card.__new__(Card)
    card.arrays = stand_in.module()
    return card


STAND_IN = GPU("stand-in", stand_in_card())


@pytest.fixture(params=WHERE_TO_RUN)
def gpu(request):
    """The device under test."""
    return STAND_IN if request.param == "stand-in" else named(request.param)


def draw(shape, dtype, seed=0):
    """Numbers of `dtype`; floats without zeros and ties."""
    random = np.random.default_rng(seed)
    if dtype.kind == "b":
        values = random.integers(0, 2, shape)
    elif dtype.is_float:
        values = random.uniform(0.5, 2.0, shape) * random.choice(
            [-1, 1], shape)
    else:
        values = random.integers(0 if dtype.kind == "u" else -9, 10, shape)
    return np.asarray(values).astype(dtype.numpy)


def same(gpu, op, *arrays, arg=None, moves=()):
    """Run `op` here and there on equal operands, moved alike."""
    results = []
    for device in (CPU, gpu):
        buffers = [device.adopt(a) for a in arrays]
        for move, how in moves:
            buffers[0] = device.run(move, buffers[0], arg=how)
        results.append(device.host(device.run(op, *buffers, arg=arg)))
    here, there = results
    assert here.shape == there.shape
    assert here.dtype is there.dtype
    name = here.dtype.name
    if name in FLOATS:
        wide = np.float64
        np.testing.assert_allclose(
            there.array.astype(wide), here.array.astype(wide),
            rtol=TOLERANCE[name], atol=TOLERANCE[name])
    else:
        np.testing.assert_array_equal(there.array, here.array)


def test_every_primitive_has_a_launch():
    leaves_here = {op for op in FAMILIES["leaves"] if op.name == "BUFFER"}
    wanted = {op for ops in FAMILIES.values() for op in ops}
    moved = {RESHAPE, PERMUTE, EXPAND, SHRINK, FLIP}
    made_of_them = {ATTENTION, ATTENTION_GRADIENT, CONV}
    assert set(LAUNCH) == (wanted - moved - leaves_here) | made_of_them


QUICK = [d for d in DTYPES.values() if d is float32]
SLOW = [pytest.param(d, marks=pytest.mark.slow)
        for d in DTYPES.values() if d is not float32]
NO_DIVISION = next(p for p in SLOW if p.values == (bool_,))
ALL = pytest.mark.parametrize("dtype", QUICK + SLOW, ids=str)


def meaningful(op, dtype):
    """Whether the table DTYPE lets `op` have `dtype`."""
    try:
        CPU.run(op, *[adopt(draw((1,), dtype))] * op.arity)
    except TypeError:
        return False
    return True


@ALL
@pytest.mark.parametrize("op", CUDA_CODE, ids=str)
def test_elementwise(gpu, op, dtype):
    if not meaningful(op, dtype):
        with pytest.raises(TypeError):
            gpu.run(op, *[gpu.adopt(draw((1,), dtype))] * op.arity)
        return
    for shape in SHAPES:
        arrays = [draw(shape, dtype, seed) for seed in range(op.arity)]
        if op.name in ("LOG", "SQRT"):
            arrays = [np.abs(a) for a in arrays]
        same(gpu, op, *arrays)


@ALL
def test_strange_operands(gpu, dtype):
    x = draw((4, 6), dtype)
    for moves in (
            [(PERMUTE, (1, 0))], [(FLIP, (0, 1))],
            [(SHRINK, ((1, 4, 2), (0, 6, 5)))],
            [(RESHAPE, (4, 1, 6)), (EXPAND, (4, 3, 6))],
            [(PERMUTE, (1, 0)), (RESHAPE, (3, 8))]):
        same(gpu, CAST, x, arg=dtype, moves=moves)
        same(gpu, MAX, x, arg=(0,), moves=moves)
        if dtype.is_float:
            same(gpu, SIN, x, moves=moves)
        if dtype is not bool_:
            same(gpu, SUM, x, arg=(1,), moves=moves)


@pytest.mark.slow
@ALL
def test_casts(gpu, dtype):
    for target in DTYPES.values():
        same(gpu, CAST, draw((3, 5), dtype), arg=target)


@pytest.mark.parametrize(
    "dtype", [d for d in (*QUICK, *SLOW) if d is not NO_DIVISION], ids=str)
def test_division_rounds_down(gpu, dtype):
    """The lowest integer has no opposite to be its quotient by -1."""
    ends = [] if dtype.is_float else [
        np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max]
    values = np.array([0, 1, 6, 7, *ends, *(
        [-7, -6, -1] if dtype.kind != "u" else [])]).astype(dtype.numpy)
    a, b = [g.ravel() for g in np.meshgrid(values, values)]
    for op in IDIV, MOD:
        same(gpu, op, np.ascontiguousarray(a), np.ascontiguousarray(b))
        if dtype is float32:  # quotients that are not whole any more
            far, near = np.random.default_rng(0).uniform(-1, 1, (2, 99))
            same(gpu, op, *np.float32([far * 100, near]))


def test_infinities_and_nothing(gpu):
    edge = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -2.5],
                    np.float32)
    a, b = [np.ascontiguousarray(g.ravel()) for g in np.meshgrid(edge, edge)]
    for op in CUDA_CODE:
        if meaningful(op, float32):
            same(gpu, op, *[a, b][:op.arity])
    same(gpu, MAX, a.reshape(7, 7), arg=(0,))
    same(gpu, MAX, a.reshape(7, 7), arg=(1,))


@ALL
@pytest.mark.parametrize("shape, axes", [
    ((5,), (0,)), ((1, 1), (0, 1)), ((33, 65), (0,)), ((33, 65), (1,)),
    ((33, 65), (0, 1)), ((3, 5, 7), (0, 2)), ((3, 5, 7), (1,)),
    ((20_000,), (0,)), ((3, 9_000), (1,)), ((9_000, 3), (0,)), ((4, 3), ()),
    ((9, 32), (1,)), ((7, 1023), (1,)), ((3, 1024), (1,)), ((2, 1281), (1,)),
    ((5, 3, 40), (1, 2)), ((3, 40, 5), (0, 1)),
])
def test_reductions(gpu, dtype, shape, axes):
    x = draw(shape, dtype)
    same(gpu, MAX, x, arg=axes)
    if dtype is not bool_ and (dtype.itemsize > 2 or x.size < 100):
        same(gpu, SUM, x, arg=axes)


def test_sum_of_nothing(gpu):
    same(gpu, SUM, np.zeros((0, 3), np.float32), arg=(0,))
    same(gpu, SUM, np.zeros((0, 3), np.float32), arg=(1,))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.slow
def test_halves_are_summed_wide(gpu, name):
    dtype = DTYPES[name]
    ones = np.ones(20_000, dtype.numpy)
    found = gpu.host(gpu.run(SUM, gpu.adopt(ones), arg=(0,)))
    assert found.array[0] == dtype.numpy.type(20_000)


@ALL
@pytest.mark.parametrize("margins", [
    ((0, 0, 1), (0, 0, 1)), ((1, 2, 1), (0, 3, 1)), ((0, 1, 3), (2, 0, 2)),
])
def test_pad(gpu, dtype, margins):
    for shape in (3, 4), (0, 4), (0, 0):
        same(gpu, PAD, draw(shape, dtype), arg=margins)


@ALL
def test_where(gpu, dtype):
    choice = draw((33, 5), bool_)
    same(gpu, WHERE, choice, draw((33, 5), dtype, 1), draw((33, 5), dtype, 2))


@ALL
@pytest.mark.parametrize("index", [
    np.array(2), np.array([0, 2, -1, 2]), np.array([[0], [-4], [3]]),
    np.zeros((0,), np.int64), np.array([1, 3], np.uint8),
    np.array([-1, 3], np.int32),
])
def test_gather_and_scatter(gpu, dtype, index):
    index = np.asarray(index)
    for row in ((), (3,), (2, 5)):
        same(gpu, GATHER, draw((4, *row), dtype), index, arg=0)
        same(gpu, SCATTER, draw((*index.shape, *row), dtype), index,
             arg=(0, 4))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("tail", [(), (4,), (4, 2)])
def test_gather_and_scatter_behind_shared_axes(gpu, axis, tail):
    shared = (2, 3)[:axis]
    index = np.random.default_rng(0).integers(0, 5, (*shared, *tail))
    for row in ((), (3,)):
        same(gpu, GATHER, draw((*shared, 5, *row), float32), index, arg=axis)
        same(gpu, SCATTER, draw((*index.shape, *row), float32), index,
             arg=(axis, 5))


def test_behind_shared_axes_no_index_counts_back(gpu):
    wrong = Tensor.apply(GATHER, ones(2, 3, device=gpu),
                         Tensor([0, -1], device=gpu), arg=1)
    with pytest.raises(IndexError, match="index -1 .* allows 0 to 2"):
        wrong.numpy()


def test_a_wrong_index_is_told_at_the_next_look(gpu):
    table = Tensor([[1.0], [2.0]], device=gpu)
    wrong = table[Tensor([0, 2], device=gpu)]
    with pytest.raises(IndexError, match="index 2 .* length 2"):
        wrong.numpy()
    assert table[Tensor([-1], device=gpu)].tolist() == [[2.0]]
    wrong = table[Tensor([3], device=gpu)]
    with pytest.raises(IndexError, match="index 3 "):
        pickle.dumps(wrong)  # what is stored has left the device, too


@ALL
@pytest.mark.parametrize("m, k, n", [
    (1, 1, 1), (3, 4, 5), (33, 17, 65), (1, 9, 4), (4, 9, 1), (2, 0, 3),
    (0, 3, 2), (2, 3, 0)])
def test_products(gpu, dtype, m, k, n):
    small = [np.sign(draw(s, dtype)) if dtype.kind == "i" else draw(s, dtype)
             for s in ((m, k), (k, n))]
    same(gpu, MATMUL, *small)


@pytest.mark.parametrize("left", [
    [], [(PERMUTE, (0, 2, 1))], [(FLIP, (1,))],
    [(SHRINK, ((0, 4, 1), (0, 6, 1), (0, 6, 2)))],
    [(SHRINK, ((0, 4, 2), (0, 6, 1), (0, 5, 1)))],
    [(SHRINK, ((1, 2, 1), (0, 6, 1), (0, 6, 1))), (EXPAND, (4, 6, 6))],
    [(FLIP, (0,))],
    [(RESHAPE, (2, 2, 6, 6)), (PERMUTE, (1, 0, 3, 2))],
])
def test_products_of_views(gpu, left):
    a = draw((4, 6, 6), float32)
    view = CPU.adopt(a)
    for move, how in left:
        view = CPU.run(move, view, arg=how)
    b = draw((*view.shape[:-2], view.shape[-1], 7), float32, 1)
    same(gpu, MATMUL, a, b, moves=left)


def test_no_copy_for_a_transposed_product():
    gpu = named("emulated")
    x = Tensor(draw((5, 6), float32), device=gpu)
    before = gpu.memory().used
    y = x.T @ x
    assert gpu.memory().used - before <= max(4 * y.size, 512)


def test_products_count_in_32_bits():
    """More is refused, and rows that lie further apart are copied."""
    gpu, n = named("emulated"), 1 << 31
    x = Tensor([[1.0]], device=gpu)
    with pytest.raises(ValueError, match=r"up to 2,147,483,647, got \(1, 21"):
        x.expand(1, n) @ x.expand(n, 1)
    assert matrix(View((2, 3), (n - 1, 1))) == (False, n - 1)
    assert matrix(View((2, 3), (n, 1))) is None
    assert matrix(View((2, 3), (1, n))) is None


def test_products_in_tf32(monkeypatch):
    monkeypatch.setitem(CUBLAS, float32, CUBLAS[float32])
    gpu, x = named("emulated"), draw((40, 40), float32)
    y, true = Tensor(x, device=gpu), x.astype("f8") @ x.astype("f8")
    size = np.abs(x.astype("f8")) @ np.abs(x.astype("f8"))
    sums = 40 * 2.0**-24  # forty terms, each rounded once on the way
    for precision, low, high in ("high", sums, 2.0**-9), ("highest", 0, sums):
        set_float32_matmul_precision(precision)
        wrong = np.abs((y @ y).numpy() - true) / size
        assert low <= wrong.max() < high
    with pytest.raises(ValueError, match="one of highest, high; got 'low'"):
        set_float32_matmul_precision("low")


def test_a_leading_dimension_is_long_enough():
    for lead, rows in (2, 3), (0, 0):
        with pytest.raises(ValueError, match=f"cannot lie {lead} apart"):
            column_major(Operand(False, 0, lead, 0), float32, rows, 1, 1)


@pytest.mark.parametrize("n", [8192, 8193, 32_768, 40_001])
def test_threads_that_go_round_again(gpu, n):
    """32 blocks of 256 threads with four elements each: 32,768 at once."""
    x, y = draw((n,), float32), draw((n,), float32, 1)
    same(gpu, ADD, x, y)
    same(gpu, WHERE, x > 0, x, y)
    same(gpu, ADD, x.reshape(-1, 1), y.reshape(1, -1)[:, :3].repeat(n, 0),
         moves=[(EXPAND, (n, 3))])


def test_steps_beyond_32_bits():
    """Two bytes more than 2 GiB apart; what lies between is not touched."""
    card = Emulator()
    card.capacity = 1 << 33
    gpu, far = GPU("large", card), (1 << 31) + 5
    storage = gpu.fresh(far + 1)
    ends = Buffer(storage, View((2,), (far,), 0), int8)
    gpu.run(WRITE, ends, gpu.adopt(np.array([3, -7], np.int8)))
    assert gpu.host(gpu.run(CAST, ends, arg=int64)).array.tolist() == [3, -7]
    assert gpu.host(gpu.run(SUM, ends, arg=(0,))).array.tolist() == [-4]
    assert storage.memory[far] == 256 - 7


def test_warps_read_whole_sectors():
    """Dense operands, rows and columns: no transaction too many."""
    x, y = draw((64, 256), float32), draw((64, 256), float32, 1)
    out, made = np.empty_like(x), program(Emulator(), float32)
    kept, along = walk_struct((64,), (256,)), walk_struct((256,), (1,))
    for seen in (
            trace(made, "ADD", 4, 256,
                  walk_struct((64 * 256,), (1,), (1,), (1,)),
                  out, x, y),
            trace(made, "SUM_rows", 8, block("rows", 256)[0], kept, along,
                  np.int64(256), out, x),
            trace(made, "SUM_columns", 8, block("columns", 64)[0], along,
                  kept, np.int64(64), out, x)):
        for (place, _), found in traffic(seen).items():
            assert place == "shared" or found.transactions == found.least
        assert len(races(seen)) == 0


@pytest.mark.parametrize("how, kept, along", [
    ("rows", 3, 1100), ("rows", 9, 33), ("columns", 40, 70)])
def test_folds_have_no_races(how, kept, along):
    x, out = draw((kept, along), float32), np.empty(kept, np.float32)
    threads, results = block(how, along)
    seen = trace(program(Emulator(), float32), f"SUM_{how}",
                 -(-kept // results), threads, walk_struct((kept,), (along,)),
                 walk_struct((along,), (1,)), np.int64(along), out, x)
    assert len(races(seen)) == 0
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-4)


def test_scatter_has_no_races():
    """Rows that want one place add to it one after the other."""
    x, out = draw((8, 3), float32), np.zeros((4, 3))  # sums in double
    index, fault = np.array([0, 3, 0, 0, 2, 3, 1, 0]), np.zeros(4, np.int64)
    axis = np.array((4, 3, -4), AXIS)[()]
    seen = trace(program(Emulator(), float32), "scatter", 1, 256,
                 walk_struct((8, 3), (0, 1), (1, 0), (3, 1)), axis, fault, out,
                 index, x)
    assert len(races(seen)) == 0 and not fault.any()
    np.testing.assert_allclose(out[0], x[index == 0].sum(0), rtol=1e-5)


def test_chance_fills_its_array_and_no_more(gpu):
    """Odd lengths, counters beyond 32 bits, a key read backwards."""
    out, key = np.empty(7, np.float32), np.array([5, (1 << 33) + 3])
    made = program(Emulator(), float32)
    trace(made, "uniform", 1, 256, np.int64(7), out, key)
    same(gpu, RANDOM, key, arg=(7,))
    same(gpu, RANDOM, key[::-1].copy(), arg=(7,), moves=[(FLIP, (0,))])


def test_write_over_itself(gpu):
    x = Tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=gpu)
    x[1:] = x[:-1]
    assert x.tolist() == [1.0, 1.0, 2.0, 3.0, 4.0]
    version = x.buffer.storage.version
    gpu.run(WRITE, x.buffer, gpu.adopt(np.zeros(5, np.float32)))
    assert x.buffer.storage.version == version + 1


def test_a_constant_must_fit(gpu):
    with pytest.raises(OverflowError, match="300 does not fit"):
        Tensor([1], DTYPES["uint8"], device=gpu) + 300


def test_too_many_axes_say_what_helps(gpu):
    x = rand(*[2] * 9, device=gpu).permute(*range(8, -1, -1))
    with pytest.raises(ValueError, match="9 axes .* at most 8: work on x"):
        x.clone()
    assert x[0].clone().tolist() == x[0].to("cpu").tolist()


def test_no_room_is_said_and_survived():
    card = Emulator()
    card.capacity = 8192
    gpu = GPU("small", card)
    x = Tensor(np.zeros(512, np.float32), device=gpu)
    with pytest.raises(OutOfMemory, match="no room .* in use by tensors"):
        x.expand(8, 512).clone()
    assert (x * x).sum().item() == 0
    del x
    assert gpu.memory().used == 0


def test_cuda_without_a_card_says_what_to_do(monkeypatch):
    monkeypatch.setattr(Card, "__init__", lambda self: setattr(
        self, "arrays", SimpleNamespace(is_available=lambda: False)))
    with pytest.raises(RuntimeError, match="no NVIDIA GPU .* 'emulated'"):
        connect("cuda")
    monkeypatch.setattr("companion.gpu.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="CuPy is not installed"):
        connect("cuda")


def test_a_copy_under_way_waits_for_the_past_and_is_waited_for():
    stand_in.QUEUE.clear()
    tensor, arrive = STAND_IN.begin(Tensor([1.0, 2.0]))
    assert stand_in.QUEUE == [
        ("present", "record"), ("bus", "wait"), ("bus", "record")]
    arrive()
    assert stand_in.QUEUE[3:] == [("present", "wait")]
    assert len(STAND_IN.card.sent) == 1
    STAND_IN.begin(Tensor([3.0]))
    assert len(STAND_IN.card.sent) == 1, "what has passed is let go"
    assert tensor.tolist() == [1.0, 2.0]


def test_memory_under_way_is_kept_until_the_copy_is_over(monkeypatch):
    """Memory given back too early would be the next tensor's."""
    STAND_IN.begin(Tensor([0.0]))  # what has passed is let go
    monkeypatch.setattr(stand_in.Event, "done", False)
    tensor, _ = STAND_IN.begin(Tensor([1.0, 2.0]))
    target = weakref.ref(tensor.buffer.storage.memory)
    del tensor, _
    assert target() is not None
    monkeypatch.setattr(stand_in.Event, "done", True)
    STAND_IN.begin(Tensor([3.0]))
    assert target() is None


def test_a_copy_never_lands_in_memory_of_others():
    """Who drops a tensor and calls `arrive` has kept its memory."""
    tensor, arrive = GPU("emulated", Emulator()).begin(Tensor([1.0, 2.0]))
    memory = weakref.ref(tensor.buffer.storage.memory)
    del tensor
    assert memory() is not None
    arrive()
    assert memory().view(np.float32).tolist() == [1.0, 2.0]


def test_prefetch_takes_a_name():
    (batch,) = prefetch([(Tensor([1.0]), Tensor(2.0))], "emulated")
    assert [x.tolist() for x in batch] == [[1.0], 2.0]
    assert all(x.device is named("emulated") for x in batch)
    with pytest.raises(ValueError, match="expected one of cpu, .*tpu"):
        prefetch([], "tpu")


def test_batches_come_from_any_device(gpu):
    there = Tensor([[1.0, 2.0], [3.0, 4.0]]).to(gpu)
    for tensor in (there, there.T):
        copied, arrive = gpu.begin(tensor)
        arrive()
        assert copied.tolist() == tensor.tolist()


@pytest.mark.parametrize("turn", [
    lambda x: x, lambda x: x.T, lambda x: x[::2, 1:], lambda x: x[::-1],
    lambda x: x[:0]])
def test_memory_of_others_is_shared_and_copied_whole(turn, monkeypatch):
    """Sizes are bytes here, and elements of their dtype there."""
    monkeypatch.setitem(DEVICES, "stand-in", STAND_IN)
    theirs = turn(np.arange(12, dtype=np.float32).reshape(4, 3))
    ours = wrap(STAND_IN.share(theirs), STAND_IN)
    assert ours.tolist() == theirs.tolist()
    apart = copy.deepcopy(ours)
    theirs[:1] = 9
    assert ours.tolist() == theirs.tolist()
    assert theirs.size == 0 or apart.tolist() != ours.tolist()
    assert apart.shape == theirs.shape


def test_arrays_of_cuda_become_the_devices(monkeypatch):
    class Theirs(np.ndarray):
        def __dlpack_device__(self):
            return CUDA_MEMORY, 0

    monkeypatch.setitem(READERS, CUDA_MEMORY, None)
    monkeypatch.setitem(CARDS, "cuda", stand_in_card)
    device, theirs = connect("cuda"), np.arange(3.0).view(Theirs)
    ours = Tensor.from_dlpack(theirs)
    assert ours.device is device and ours.tolist() == [0, 1, 2]


def test_nothing_is_copied_without_an_address(monkeypatch):
    """CuPy's arrays without elements have the address 0."""
    monkeypatch.setattr(STAND_IN.card.arrays.cuda.runtime, "memcpyAsync",
                        lambda *_: pytest.fail("a copy of nothing"))
    x = Tensor(np.empty((0, 3), np.float32))
    assert x.to(STAND_IN).numpy().shape == (0, 3)
    sent, arrive = STAND_IN.begin(x)
    arrive()
    assert sent.shape == (0, 3)


def test_what_fits_is_not_copied(gpu, monkeypatch):
    """An index of 64 bits and a dense key are read where they are."""
    table, index = gpu.adopt(draw((4, 3), float32)), gpu.adopt(np.array([1]))
    key = gpu.adopt(np.array([1, 2], np.uint64).view(np.int64))
    monkeypatch.setitem(gpu.kernels, CAST, lambda *_: pytest.fail("a copy"))
    gpu.run(GATHER, table, index, arg=0)
    gpu.run(SCATTER, gpu.adopt(draw((1, 3), float32)), index, arg=(0, 4))
    gpu.run(RANDOM, key, arg=(5,))


def test_memory_of_a_card_tells_the_pool_from_the_tensors():
    assert STAND_IN.memory() == (10, 20, 30, 40)
    assert "10 bytes in use by tensors, 20 bytes kept" in str(
        STAND_IN.memory())


def test_an_emulated_buffer_is_not_numpys(gpu):
    x = Tensor([1.0, 2.0], device=named("emulated"))
    with pytest.raises(BufferError, match="numpy"):
        x.buffer.array  # noqa: B018
    with pytest.raises(BufferError, match="numpy"):
        np.from_dlpack(x)


@pytest.mark.needs("cupy")
@pytest.mark.parametrize("name", [
    "empty", "ndarray", "RawModule", "is_available", "from_dlpack",
    "get_default_memory_pool", "cuda.Device.attributes", "cuda.Stream.record",
    "cuda.Stream.wait_event", "cuda.Stream.synchronize", "cuda.Event.done",
    "cuda.Stream.begin_capture", "cuda.Stream.end_capture",
    "cuda.MemoryPool.malloc", "cuda.using_allocator",
    "cuda.graph.Graph.launch", "cuda.get_current_stream",
    "cuda.alloc_pinned_memory", "cuda.get_cublas_handle",
    "cuda.compiler.CompileException",
    "cuda.runtime.memcpyDefault", "cuda.runtime.memGetInfo",
    "cuda.runtime.memcpyAsync", "cuda.runtime.getDeviceProperties",
])
def test_cupy_has_what_a_card_asks_for(name):
    operator.attrgetter(name)(__import__("cupy"))


def test_a_name_is_enough():
    x = zeros(2, 3, device="emulated") + rand(2, 3, device="emulated")
    assert x.device is named("emulated")
    assert (x.to("cpu") < 1).all()
    with pytest.raises(ValueError, match="expected one of cpu, .*tpu"):
        zeros(2, device="tpu")


def test_threads_that_name_a_device_get_one(monkeypatch):
    def connect(name):
        time.sleep(0.05)
        return GPU(name, Emulator())

    monkeypatch.delitem(DEVICES, "emulated", raising=False)
    monkeypatch.setattr("companion.gpu.connect", connect)
    with ThreadPoolExecutor(2) as two:
        one, other = two.map(named, ["emulated"] * 2)
    assert one is other


def test_index_dtype_is_checked_first(gpu):
    with pytest.raises(TypeError):
        gpu.run(GATHER, gpu.adopt(np.zeros(3, np.float32)),
                gpu.adopt(np.zeros(2, np.float32)), arg=0)


ARCHITECTURES = [(dtype, "sm_90") for dtype in DTYPES.values()] + [
    (float32, arch) for arch in PROCESSORS if arch != "sm_90"]


@pytest.mark.needs("cupy")
@pytest.mark.slow
@pytest.mark.parametrize("dtype, arch", ARCHITECTURES, ids=str)
def test_kernels_compile_without_spills(dtype, arch):
    """NVIDIA's compiler needs no card; three blocks fit a processor."""
    text = program_text(dtype)
    found = usage(text, *spelled(dtype), arch=arch)
    assert sorted(found) == sorted(kernel_names(text))
    for name, use in found.items():
        assert use.spilled == 0, name
        assert occupancy(use, 256, arch) >= 0.375, (name, use)


def test_the_bench_times_functions_of_its_own_process(monkeypatch):
    """CUDA does not survive a fork; where no limit is known, none is told."""
    monkeypatch.setattr("companion.gpu.burst", lambda run: best(run, 1))
    calls = []
    stream = SimpleNamespace(synchronize=lambda: calls.append("wait"))
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    card = SimpleNamespace(arrays=SimpleNamespace(cuda=cuda))
    cases = [("case", lambda: calls.append("ours"),
              lambda: calls.append("theirs"), 2.0)]  # fmt: skip
    for limit in (None, 4.0):
        (found,) = measured(SimpleNamespace(card=card), cases, limit)
        part = limit and found["ours"] / limit
        assert found["limit_fraction"] == part
        assert found["ours"] > 0 < found["peer"]
    assert set(calls[1::2]) == {"wait"}
    assert set(calls[::2]) == {"ours", "theirs"}
