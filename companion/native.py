# Tangled from native, optimizers, cuda: edit there, `make tangle`. sha256:1d95438d6aa9  # noqa: E501
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import platformdirs

from companion.buffer import Buffer, adopt
from companion.dtype import float32, float64, int32, int64
from companion.sharing import forkable, once


class CompileError(RuntimeError):
    """There is no C compiler, or it refused; the text says what to do."""


@functools.cache
def compiler() -> tuple[list[str], str]:
    """Command and version of the C compiler: $CC, or the first one found."""
    told = os.environ.get("CC", "").split()
    # What ccache would keep, our own cache keeps already.
    name, *flags = told[told[:1] == ["ccache"]:] or [""]
    names = [name] if name else ["cc", "gcc", "clang"]
    found = list(filter(None, map(shutil.which, names)))
    if not found:
        raise CompileError(
            f"no C compiler found (tried {', '.join(names)}): install one "
            f"(Debian: apt install gcc; macOS: xcode-select --install) or "
            f"name yours in CC")
    command = [found[0], *flags]
    version = subprocess.run(
        [*command, "--version"], capture_output=True, text=True)
    return command, version.stdout.partition("\n")[0]


X86 = platform.machine() in ("x86_64", "AMD64")
# contract: fused multiply-adds; protected: a library's functions call
# each other directly, whatever else the process has loaded; no MMX, which
# would leave the registers of long doubles unusable.
FLAGS = ("-O2", "-ffp-contract=fast", "-fvisibility=protected",
         "-fPIC", "-shared", "-pthread", "-w", *["-mno-mmx"] * X86)


def compile_c(source: str, flags: Iterable[str], out: Path) -> None:
    """Compile C, or C++ if a flag names its standard, into `out`."""
    language = "c++" if any("=c++" in flag for flag in flags) else "c"
    command = [*compiler()[0], *flags, "-x", language, "-", "-lm"]
    # `complaint` looks for the word that compilers use in English.
    english = os.environ | {"LC_ALL": "", "LC_MESSAGES": "C", "LANGUAGE": ""}
    done = subprocess.run([*command, "-o", str(out)], input=source,
                          capture_output=True, text=True, env=english)
    if done.returncode:
        raise CompileError(complaint(done.stderr))


def complaint(report: str) -> str:
    """Where a compiler first complains, and about what."""
    found = re.search(r"(?m)^(.+?)[:(](\d+)[:)].*?error: (.*)$", report)
    if found:
        return "{}, line {}: {}".format(*found.groups())
    if "cc1plus" in report:
        return (f"{compiler()[0][0]} reads no C++: install its other half "
                f"(Debian: apt install g++)")
    return "the C compiler failed: " + report.strip().split("\n")[-1]


@functools.cache
def cpu() -> str:
    """The processor, as far as the flag `native` looks at it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = info.read_text().partition("\n\n")[0]
    # Not the rest: it counts the megahertz of the moment, and the name of
    # a compiled file, in which this text is hashed, has to last.
    names = r"(?m)^(?:model name|flags|Features|CPU part)\b.*"
    return "\n".join(re.findall(names, first))


ARM = platform.machine() in ("aarch64", "arm64")
LEVELS = {"x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


def instruction_sets() -> list[str]:
    """The instruction sets that COMPANION_MARCH may name here."""
    has = cpu().split()
    older = [level for level, flag in LEVELS.items() if flag in has]
    return ["native", *(["generic"] if ARM else older)]


def march() -> str:
    """The compiler's flag for $COMPANION_MARCH, or for `native`."""
    told = os.environ.get("COMPANION_MARCH") or "native"
    if told not in instruction_sets():
        known = ", ".join(instruction_sets())
        raise ValueError(f"COMPANION_MARCH: expected one that this processor "
                         f"runs ({known}), got {told!r}")
    return f"-m{'cpu' if ARM else 'arch'}={told}"


def digest(data: bytes) -> str:
    """Twenty-four digits that no other data will have."""
    return hashlib.sha256(data).hexdigest()[:24]


def key(source: str, flags: Iterable[str]) -> str:
    """What compiled code depends on, as one hash (#line does not count)."""
    # A cell that is run again has another number, and is the same program.
    text = re.sub(r"(?m)^#line .*\n", "", source)
    command, version = compiler()
    parts = [text, *flags, *command[1:], version, cpu()]
    return digest("\0".join(parts).encode())


def cache() -> Path:
    """The folder of compiled code: $COMPANION_CACHE, or the user's own."""
    default = platformdirs.user_cache_dir("companion")
    folder = Path(os.environ.get("COMPANION_CACHE") or default)
    # Where no folder can be made, `build` says so, and what to do.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(source: str, *flags: str) -> Path:
    """The shared library of a C text: from the cache, or made now."""
    flags = (march(), *FLAGS, *flags)
    name = key(source, flags)
    for library in cache().glob(f"{name}-*.so"):
        # The contents must fit their hash in the name: to load a library
        # that has lost its end would kill the process.
        if library.stem == f"{name}-{digest(library.read_bytes())}":
            return library
    if not os.access(cache(), os.W_OK):
        raise CompileError(f"cannot write to {cache()}: name a folder of "
                           f"yours in COMPANION_CACHE")
    clean_cache()
    # Inside the cache: a move is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix="making-",
                                     dir=cache()) as folder:
        made = Path(folder, "made.so")
        compile_c(source, flags, made)
        name = f"{name}-{digest(made.read_bytes())}.so"
        return made.replace(cache() / name)


def clean_cache(hours: float = 1.0) -> None:
    """Remove what killed compilations have left in the cache."""
    for folder in cache().glob("making-*"):
        with contextlib.suppress(OSError):
            if time() - folder.stat().st_mtime > 3600 * hours:
                shutil.rmtree(folder)


# No parser of C: it knows the one way in which our C is written.
FUNCTION = re.compile(
    r"(?m)^(?!static|typedef)(\w[\w ]*?[ *]+)(\w+)\(([^(){};]*)\) \{")


def prototypes(source: str, flags: Iterable[str]) -> Iterator[list[str]]:
    """[result, name, parameter …] of each function that C exports."""
    macros = dict(re.findall(r"(?m)^#define (\w+) (\w+)$", source))
    macros |= dict(re.findall(r"-D(\w+)=(\w+)", " ".join(flags)))
    text = re.sub(r"\w+", lambda m: macros.get(m[0], m[0]), source)
    for result, name, inside in FUNCTION.findall(text):
        parameters = [] if inside == "void" else inside.split(",")
        yield [result, name, *parameters]


SCALARS = {"void": None, "int": ctypes.c_int, "long": ctypes.c_long,
           "float": ctypes.c_float, "double": ctypes.c_double}
ELEMENTS = {"float": float32, "double": float64,
            "int": int32, "long": int64}


def c_type(declaration: str) -> Any:
    """What ctypes passes for `long n` or `const float *x`."""
    word, *rest = declaration.replace("const ", "").split()
    if "*" in declaration:
        return pointer(word.rstrip("*"))
    if word not in SCALARS:
        raise CompileError(f"{declaration.strip()}: expected a pointer or "
                           f"one of {', '.join(SCALARS)}")
    return SCALARS[word]


@functools.cache
def pointer(kind: str) -> type:
    """A ctypes parameter: takes arrays, Buffers and addresses."""
    class Pointer:
        @staticmethod
        def from_param(value: Any) -> Any:
            return ctypes.c_void_p.from_param(address(value, kind))
    return Pointer


def address(value: Any, kind: str) -> Any:
    """Where the elements of an array or a Buffer of `kind` begin."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise TypeError(f"{kind} *: expected elements side by side, got "
                            f"strides {value.strides}; pass a copy")
        value = adopt(value)
    # For an address that is a number the caller vouches.
    if not isinstance(value, Buffer):
        return value
    # Kinds without an entry may be structures: they pass unchecked.
    if value.dtype is not ELEMENTS.get(kind, value.dtype):
        raise TypeError(f"{kind} *: expected {ELEMENTS[kind]}, got "
                        f"{value.dtype}; convert it first")
    return value.address


LOADING = forkable(threading.Lock())  # of two threads, one compiles


def load(source: str, *flags: str) -> ctypes.CDLL:
    """The library of a C text, its functions ready to be called."""
    with LOADING:
        library = ctypes.CDLL(str(build(source, *flags)))
    for result, name, *parameters in prototypes(source, flags):
        function = getattr(library, name)
        function.restype = c_type(result)
        function.argtypes = [c_type(p) for p in parameters]
    return library


CELLS: dict[str, list[str]] = {}


def load_ipython_extension(shell: Any) -> None:
    """%load_ext companion.native: the magic %%c FILE.c [flags]."""
    magic = functools.partial(compile_cell, shell)
    shell.register_magic_function(magic, "cell", "c")


def compile_cell(shell: Any, line: str, cell: str,
                 make: Callable[..., Any] = load) -> None:
    """Compile all cells of a file, bind what they make to its name."""
    if not line.strip():
        raise ValueError("no file: expected its name, and flags if any, "
                         "behind the magic, as in %%c sum.c")
    file, *flags = line.split()
    cells = list(CELLS.get(file, []))
    new = defined_names(cell)
    again = [i for i, old in enumerate(cells) if defined_names(old) & new]
    place = slice(*(again[:1] * 2 or [len(cells)] * 2))
    cells = [old for i, old in enumerate(cells) if i not in again]
    # What is shown of a cell is its place in this list.
    number = len(shell.user_ns["In"]) - 1
    where = f'#line 2 "Cell In[{number}]"\n'
    cells[place] = [where + cell]
    made = make("".join(cells), *flags)
    # Not before it has compiled: a cell that is refused leaves no trace.
    CELLS[file] = cells
    shell.user_ns[Path(file).stem] = made


def defined_names(cell: str) -> set[str]:
    """The functions and structures that C, C++ or CUDA text defines."""
    noise = r'extern "C" |template <.*?>\s+|__launch_bounds__\(.*?\) '
    start = r"(?m)^(?!enum|typedef|#)(?:[\w:]+[ *]+)*?((?:\w+::)?\w+)"
    return set(re.findall(start + r"(?:\([^;{}]*?\))? \{",
                          re.sub(noise, "", cell)))


def kernel(file: str, *flags: str) -> ctypes.CDLL:
    """One of the library's C files, compiled and loaded."""
    # The notebook that writes this file has the newer text.
    if file in CELLS:
        return load("".join(CELLS[file]), *flags)
    return load((resources.files("companion") / file).read_text(), *flags)


def available() -> int:
    """Processors this process may use, or what COMPANION_THREADS says."""
    told = os.environ.get("COMPANION_THREADS")
    if told is not None:
        if not told.isdecimal() or int(told) < 1:
            raise ValueError(f"COMPANION_THREADS: expected 1 or more, "
                             f"got {told!r}")
        return int(told)
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """The threads that kernels share."""

    def __init__(self) -> None:
        self.threads = available()

    @once
    def address(self) -> int:
        """Of the C function `parallel`, for kernels to call."""
        keep_freed(1 << 29)
        parallel = kernel("kernels/pool.c").parallel
        return ctypes.cast(parallel, ctypes.c_void_p).value or 0


POOL = Pool()


def set_threads(threads: int) -> None:
    """How many threads kernels may use from now on."""
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"set_threads: expected 1 or more, got {threads!r}")
    POOL.threads = threads


TOLD: dict[str, object] = {}


def tell(line: str) -> None:
    """One line on stderr, once, whichever thread is the first."""
    me = object()
    # setdefault cannot be interrupted: one thread finds its own object.
    if TOLD.setdefault(line, me) is me:
        sys.stderr.write(f"companion: {line}\n")  # in one piece


def kernel_or_tell(without: str, file: str,
                   *flags: str) -> ctypes.CDLL | None:
    """A kernel and the pool; else None, and what happens without it."""
    try:
        return kernel(file, *flags) if POOL.address else None
    except (CompileError, OSError) as error:
        tell(f"{without}: {error}")
        return None


def keep_freed(most: int) -> bool:
    """Have glibc keep up to `most` freed bytes for the next request.

    Whether it will; other C libraries have habits of their own.
    """
    # Only glibc has it; elsewhere nothing is changed.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim, direct = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return bool(mallopt and mallopt(trim, most) and mallopt(direct, 0))
