"""Run a chapter's cells on its stage: the one source of outputs."""

import argparse
import datetime
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupytext.myst import myst_to_notebook
from nbclient import NotebookClient
from nbclient.exceptions import (
    CellExecutionError,
    CellTimeoutError,
    DeadKernelError,
)
from nbformat.v4 import new_output

from companion.literate.source import SourceError, read_book
from companion.literate.stage import package_files, replace, stage

EXECUTED = "_build/executed"
RECORD = "site/notebooks"
CELL_TIMEOUT = 300  # seconds
KERNEL = [
    "--InlineBackend.figure_formats={'svg'}",
    "--InteractiveShell.colors=nocolor",
    "--log-level=ERROR",
]
INK = "7c7c7c"  # legible on white and on near black
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.prop_cycle": "cycler('color', ['2f7fc1', 'c8662f', '96791f'])",
    "axes.spines.right": "False",
    "axes.spines.top": "False",
    "axes.titlesize": "medium",
    "figure.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": "0.3",
    "legend.frameon": "False",
    "savefig.transparent": "True",
    "svg.fonttype": "none",
    "svg.hashsalt": "companion",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def execute(book, name, library="stage"):
    """The chapter as a notebook with all its outputs.

    Runs on the chapter's stage, or on the "final" library. What ran
    before, unchanged, comes from the cache: prose may be edited freely.
    """
    chapter = book.chapter(name)
    notebook = read_notebook(chapter)
    if not code_cells(notebook):
        return notebook
    upto = name if library == "stage" else None
    cache = book.root / EXECUTED / f"{name}-{library}.ipynb"
    with locked(cache):
        key = fingerprint(chapter, notebook, package_files(book, upto))
        done = cached(cache, key)
        if done is None:
            done = run(chapter, notebook, stage(book, upto))
            done.metadata["execution"]["key"] = key
            replace(cache, nbformat.writes(done))
    fill(notebook, done)
    insert_recorded(book, name, notebook)
    return notebook


def read_notebook(chapter):
    """The chapter's cells as a notebook, not yet run, with stable ids."""
    notebook = myst_to_notebook(chapter.text, add_source_map=True)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        name = digest(cell.cell_type + cell.source)[:8]
        seen[name] += 1
        copies = seen[name]
        cell.id = name if copies == 1 else f"{name}-{copies}"
    return notebook


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def fingerprint(chapter, notebook, files):
    """What the outputs depend on, as one hash."""
    cells = code_cells(notebook)
    program = [[cell.source, cell.metadata.get("tags")] for cell in cells]
    library = {
        path: text
        for path, text in files.items()
        if chapter.beside or is_framework(path)
    }
    needs_gpu = any(tagged(cell, "gpu") for cell in cells)
    machine = [sys.version, packages(), needs_gpu and gpu_name()]
    return digest(json.dumps([program, library, STYLE, KERNEL, machine]))


def is_framework(path):
    """Whether a chapter that is no tool's can see the file."""
    tools = "companion/literate/"
    return not path.startswith(tools) or path.endswith("runtime.py")


def packages():
    """Name and version of all that is installed."""
    return sorted(
        f"{found.name}=={found.version}"
        for found in importlib.metadata.distributions()
    )


def gpu_name():
    """The name of the CUDA device, or None where there is none."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy

    if not cupy.is_available():
        return None
    return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


@contextmanager
def locked(path):
    """Let one process at a time work on `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(path, key):
    """The notebook stored under this key, if any."""
    if not path.exists():
        return None
    try:
        done = nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError:
        return None
    return done if done.metadata.execution.key == key else None


def run(chapter, notebook, folder):
    """Execute a copy of the notebook with `folder` on PYTHONPATH."""
    notebook = nbformat.from_dict(notebook)
    device = gpu_name() if has_tag(notebook, "gpu") else None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        write_style(Path(scratch))
        progress = Progress(chapter, notebook)
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": scratch}},
            extra_arguments=KERNEL,
            skip_cells_with_tag="gpu" if device is None else "never",
            coalesce_streams=True,
            record_timing=False,
            on_cell_start=progress.show,
        )
        progress.watch(client, environment(folder, scratch))
    seconds = time.perf_counter() - start
    notebook.metadata["execution"] = {"seconds": round(seconds, 2)}
    finish(chapter, notebook, device)
    progress.end(seconds)
    return notebook


def has_tag(notebook, tag):
    return any(tagged(cell, tag) for cell in code_cells(notebook))


def write_style(scratch):
    """Matplotlib reads the file of this name in the working folder."""
    lines = [f"{name}: {value}\n" for name, value in STYLE.items()]
    (scratch / "matplotlibrc").write_text("".join(lines))


def environment(folder, scratch):
    """The kernel sees the stage, and no habits of the reader's own."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(folder).resolve()),
        "IPYTHONDIR": str(scratch),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "SOURCE_DATE_EPOCH": "0",
    }


class Progress:
    """Tells which cell runs, and where the chapter says what failed."""

    def __init__(self, chapter, notebook):
        self.chapter = chapter
        self.cells = code_cells(notebook)
        self.cell = self.cells[0]

    def show(self, cell, cell_index):
        """Called by nbclient before each cell."""
        self.cell = cell
        count = self.cells.index(cell) + 1 if cell in self.cells else 0
        if sys.stderr.isatty():
            note = f"\r{self.chapter.name}: cell {count}/{len(self.cells)} "
            print(note, end="", file=sys.stderr, flush=True)

    def end(self, seconds):
        start = "\r" if sys.stderr.isatty() else ""
        note = f"{start}{self.chapter.name}: ran in {seconds:.1f} s      "
        print(note.rstrip(), file=sys.stderr)

    def watch(self, client, env):
        """Run the notebook; name the chapter's line if a cell fails."""
        try:
            client.execute(env=env)
        except CellExecutionError:
            raise failure(self.chapter, self.cells, self.cell) from None
        except CellTimeoutError:
            message = f"TimeoutError: ran longer than {CELL_TIMEOUT} s"
            raise self.error(message) from None
        except DeadKernelError:
            message = "DeadKernelError: the kernel died in this cell"
            raise self.error(message) from None

    def error(self, message):
        line = first_line(self.chapter, self.cells, self.cell)
        return SourceError(self.chapter.path, line, message)


def first_line(chapter, cells, cell):
    """The line of the chapter where the cell's source begins."""
    return chapter.cells[cells.index(cell)].line


def failure(chapter, cells, cell):
    """The error for a cell that raised, traceback included."""
    output = next(o for o in cell.outputs if o.output_type == "error")
    lines = {
        str(ran.execution_count): source.line
        for ran, source in zip(cells, chapter.cells, strict=True)
        if ran.execution_count is not None
    }
    trace = plain("\n".join(output.traceback))
    trace = CELL_FRAME.sub(lambda frame: at(chapter, lines, frame), trace)
    trace = FILE_FRAME.sub(r"File \1", trace)
    places = re.findall(re.escape(chapter.path) + r":(\d+)", trace)
    line = int(places[-1]) if places else first_line(chapter, cells, cell)
    message = f"{output.ename}: {output.evalue}"
    return SourceError(chapter.path, line, f"{message}\n\n{trace}")


CELL_FRAME = re.compile(r"Cell In\[(\d+)\], line (\d+)")
FILE_FRAME = re.compile(r"File \S*?(companion/\S+\.py:\d+)")


def plain(text):
    """Text without the terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def at(chapter, lines, frame):
    """A cell's frame, by the chapter's line instead of the cell's."""
    cell, line = frame.groups()
    return f"{chapter.path}:{lines[cell] + int(line) - 1}"


def finish(chapter, notebook, device):
    """Check what was expected to raise; label what ran on the GPU."""
    cells = code_cells(notebook)
    for cell, source in zip(cells, chapter.cells, strict=True):
        errors = [o for o in cell.outputs if o.output_type == "error"]
        if tagged(cell, "raises-exception") and not errors:
            raise SourceError(
                chapter.path,
                source.line,
                "the cell is tagged raises-exception and raised nothing: "
                "remove the tag, or let it fail",
            )
        for output in errors:
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if device and tagged(cell, "gpu"):
            cell.metadata["recorded"] = {
                "device": device,
                "date": datetime.date.today().isoformat(),
                "source": digest(cell.source)[:12],
            }


def fill(notebook, done):
    """Give the cells of `notebook` the outputs of those in `done`."""
    pairs = zip(code_cells(notebook), code_cells(done), strict=True)
    for cell, ran in pairs:
        cell.outputs = ran.outputs
        cell.execution_count = ran.execution_count
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
    notebook.metadata["execution"] = done.metadata["execution"]


def insert_recorded(book, name, notebook):
    """Show, where no GPU ran them, what the record has of `gpu` cells."""
    waiting = [
        cell
        for cell in code_cells(notebook)
        if tagged(cell, "gpu") and cell.execution_count is None
    ]
    known = recorded_cells(book.root / RECORD / f"{name}.ipynb")
    for index, cell in enumerate(waiting):
        if index < len(known):
            cell.metadata["recorded"] = known[index].metadata["recorded"]
            cell.outputs = known[index].outputs
        cell.outputs = [label(cell), *cell.outputs]


def recorded_cells(path):
    """The gpu cells of a notebook in the record."""
    if not path.exists():
        return []
    notebook = nbformat.read(path, as_version=4)
    return [c for c in code_cells(notebook) if "recorded" in c.metadata]


def label(cell):
    """An output that says where the outputs below it come from."""
    note = "Not run here: this cell needs an NVIDIA GPU."
    recorded = cell.metadata.get("recorded")
    if recorded:
        note = "Recorded on {device}, {date}; source {source}".format(
            **recorded
        )
        if recorded["source"] != digest(cell.source)[:12]:
            note += ", an earlier version of this cell"
    return new_output(
        "display_data",
        {"text/plain": note, "text/html": f"<em>{note}</em>"},
        metadata={"companion": "label"},
    )


def main(argv):
    """Run the named chapters (default: all), each on its stage."""
    parser = argparse.ArgumentParser(
        prog="companion execute", description=main.__doc__
    )
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument(
        "--library", choices=["stage", "final"], default="stage"
    )
    options = parser.parse_args(argv)
    try:
        book = read_book()
        names = [chapter.name for chapter in book.chapters]
        for name in options.chapters or names:
            execute(book, name, options.library)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
