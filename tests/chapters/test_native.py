# Tangled from native: edit there, `make tangle`. sha256:01eded3c5e68
from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from companion.buffer import Storage, adopt
from companion.dtype import bfloat16
from companion.native import (
    POOL, TOLD, CompileError, available, build, compiler, instruction_sets,
    kernel_or_tell, key, load)


def test_pointers_take_what_fits():
    library = load("double half(const double *x, long i) { return x[i]/2; }")
    x = np.array([1.0, 3.0])
    for place in (x, adopt(x), x.ctypes.data):
        assert library.half(place, 1) == 1.5
    for wrong, message in (
            (x.astype(np.float32), "expected float64, got float32"),
            (adopt(x.astype(int)), "expected float64, got int64"),
            (x[::-1], "expected elements side by side")):
        try:
            library.half(wrong, 0)
        except ctypes.ArgumentError as error:
            assert message in str(error)
        else:
            raise AssertionError(f"half took {wrong!r}")


@contextlib.contextmanager
def environment(**variables):
    """Other variables for a while, and another compiler perhaps."""
    with mock.patch.dict(os.environ, variables):
        compiler.cache_clear()
        yield
    compiler.cache_clear()


def test_damaged_library_is_rebuilt():
    with (tempfile.TemporaryDirectory() as folder,
          environment(COMPANION_CACHE=folder)):
        source = "int three(void) { return 3; }"
        library = build(source)
        for damage in (b"", library.read_bytes()[:-100], b"not ELF"):
            library.unlink()  # a mapped file must not shrink
            library.write_bytes(damage)
            assert load(source).three() == 3
        assert len(list(Path(folder).iterdir())) == 1


TASKS = """
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
static void square(void *job, long i) { ((long *)job)[i] += i * i; }
void squares(long n, long *out, pool *parallel, long threads) {
  parallel(square, out, n, threads);
}
"""


def compile_and_share(folder, results):
    """What each process of the crowd does."""
    with environment(COMPANION_CACHE=folder):
        out = np.zeros(100, np.int64)
        load(TASKS).squares(100, out, POOL.address, 3)
        results.put(out.tolist())


def test_many_processes_compile_at_once():
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = fork.SimpleQueue()
        crowd = [fork.Process(target=compile_and_share,
                              args=(folder, results)) for _ in range(4)]
        for process in crowd:
            process.start()
        for process in crowd:
            process.join(60)
        assert [process.exitcode for process in crowd] == [0] * 4
        for _ in crowd:
            assert results.get() == [i * i for i in range(100)]
        assert not [p for p in Path(folder).iterdir() if p.is_dir()]


def test_killed_compilations_are_swept_away():
    with (tempfile.TemporaryDirectory() as folder,
          environment(COMPANION_CACHE=folder)):
        left, busy = Path(folder, "making-1"), Path(folder, "making-2")
        for made in (left, busy):
            made.mkdir()
            (made / "made.so").write_bytes(b"half")
        os.utime(left, (0, 0))
        build("int five(void) { return 5; }")
        assert busy.exists() and not left.exists()


def test_a_name_depends_on_all_that_matters():
    source, flags = "int six(void) { return 6; }", ["-O2"]
    name = key(source, flags)
    assert key("#line 7\n" + source, flags) == name
    assert key(source, ["-O3"]) != name and key(source + " ", flags) != name
    with mock.patch.dict(key.__globals__, cpu=lambda: "another"):
        assert key(source, flags) != name


def test_instruction_set_from_the_environment():
    source = """int wide(void) {
    #ifdef __AVX2__
      return 1;
    #endif
      return 0;
    }"""
    for level in instruction_sets()[1:]:
        with environment(COMPANION_MARCH=level):
            assert load(source).wide() == (level[-2:] in ("v3", "v4"))
    with environment(COMPANION_MARCH="x87"):
        try:
            build(source)
        except ValueError as error:
            assert "native" in str(error) and "got 'x87'" in str(error)
        else:
            raise AssertionError("COMPANION_MARCH=x87 was accepted")


def test_errors_name_the_line():
    try:
        load('#line 3 "blas.md"\nint f(void) {\n  return x;\n}')
    except CompileError as error:
        assert str(error).startswith("blas.md, line 4: ")
    else:
        raise AssertionError("an unknown name was compiled")


def test_a_missing_compiler_is_told_once():
    assert POOL.address
    with (environment(PATH="", CC=""), mock.patch.dict(TOLD, clear=True),
          contextlib.redirect_stderr(io.StringIO()) as said):
        found = [kernel_or_tell("slow", "kernels/limits.c")
                 for _ in range(2)]
    assert found == [None, None]
    lines = said.getvalue().splitlines()
    assert len(lines) == 1 and "install one" in lines[0]


def test_threads_from_the_environment():
    with environment(COMPANION_THREADS="3"):
        assert available() == 3
    with environment(COMPANION_THREADS="many"):
        try:
            available()
        except ValueError as error:
            assert "expected 1 or more, got 'many'" in str(error)
        else:
            raise AssertionError("COMPANION_THREADS=many was accepted")


def test_every_task_runs_once():
    squares = load(TASKS).squares
    for n in (0, 1, 2, 1000):
        for threads in (1, 2, 5):
            out = np.zeros(n, np.int64)
            squares(n, out, POOL.address, threads)
            assert out.tolist() == [i * i for i in range(n)]


def test_every_memory_has_an_address():
    locked = np.ones(3)
    locked.flags.writeable = False
    small = np.empty(3, bfloat16.numpy)
    for memory in (np.ones((2, 3)), locked, np.empty((0, 3)), small):
        lies = memory.__array_interface__["data"][0]
        assert Storage(memory).address == lies
