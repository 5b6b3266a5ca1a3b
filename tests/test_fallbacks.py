"""Where nothing can be compiled or loaded, every kernel has a way round."""

import ctypes

import numpy as np
import pytest

from companion import Tensor, blas, compress, device, native
from companion.dtype import float32

LOADERS = {
    "matrix products": lambda: blas.product.__wrapped__(float32),
    "loops": lambda: (device.loop.__wrapped__("add", float32)
                      or device.folder.__wrapped__(float32)
                      or device.scatterer.__wrapped__(float32)),
    "rows": lambda: device.row_copier.__wrapped__(),
    "sparse products": lambda: compress.sparse_product.__wrapped__(),
}
X = np.linspace(-2, 2, 400 * 200, dtype="f4").reshape(400, 200)
AT = np.arange(300) % 7
WORK = {
    "product": lambda: (Tensor(X) @ Tensor(X).T).numpy(),
    "sum": lambda: Tensor(X[:, 1:-1]).sum(0).numpy(),
    "difference": lambda: (Tensor(X) - X[:, :1]).numpy(),
    "exp": lambda: Tensor(X[:9]).exp().numpy(),
    "erf": lambda: Tensor(X[:9]).erf().numpy(),
    "rows": lambda: Tensor(X)[Tensor(AT)].numpy(),
    "sparse products": lambda: (compress.CSR(Tensor(X * (X > 1)))
                                @ Tensor(X[:200, :7])).numpy(),
    "sums": lambda: device.CPU.run(device.SCATTER, Tensor(X[:300]).buffer,
                                   Tensor(AT).buffer, arg=(0, 7)).array,
}


@pytest.mark.parametrize("words", ["{}", "{} -m64", "ccache {}",
                                   "ccache {} -m64"])  # fmt: skip
def test_the_compiler_that_a_user_names(monkeypatch, words):
    (path, *_), version = native.compiler()
    monkeypatch.setenv("CC", words.format(path))
    flags = ["-m64"] if "-m64" in words else []
    assert native.compiler.__wrapped__() == ([path, *flags], version)


@pytest.fixture
def compiler_with(monkeypatch):
    """`compiler_with(words)` puts words behind the compiler's name in CC."""
    (path, *_), _ = native.compiler()

    def name(words):
        monkeypatch.setenv("CC", f"{path} {words}")
        native.compiler.cache_clear()

    yield name
    monkeypatch.undo()
    native.compiler.cache_clear()


def test_flags_in_cc_are_used_and_tell_libraries_apart(compiler_with):
    for given in 3, 4:
        compiler_with(f"-DGIVEN={given}")
        library = native.load("int given(void) {\n  return GIVEN;\n}")
        assert library.given() == given


def test_a_flag_in_cc_that_no_compiler_knows(compiler_with):
    compiler_with("-no-such-flag")
    with pytest.raises(native.CompileError) as error:
        native.load("int f(void) {\n  return 1;\n}")
    assert "-no-such-flag" in str(error.value)
    assert "\n" not in str(error.value)


def refuse(*_):
    raise OSError("failed to map segment from shared object")


def refuse_to_compile(*_):
    raise native.CompileError("no C compiler found")


@pytest.fixture(params=[refuse, refuse_to_compile])
def nothing_loads(request, monkeypatch):
    """A machine that lets no compiled code in, or has no compiler."""
    loaders = (blas.product, device.loop, device.folder, device.row_copier,
               device.scatterer, compress.sparse_product)
    expected = {name: work() for name, work in WORK.items()}
    monkeypatch.setattr(native, "TOLD", {})
    if request.param is refuse:
        monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(native, "build", request.param)
    for loader in loaders:
        loader.cache_clear()
    yield expected
    for loader in loaders:
        loader.cache_clear()


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_says_what_happens_without_it(name, nothing_loads, capsys):
    assert [LOADERS[name](), LOADERS[name]()] == [None, None]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"companion: {name} ")


@pytest.mark.parametrize("name", WORK)
def test_the_way_round_gives_the_same(name, nothing_loads):
    np.testing.assert_allclose(WORK[name](), nothing_loads[name],
                               rtol=1e-4, atol=1e-5)
