# Tangled from record: edit there, `make tangle`. sha256:01b1326b5728
"""Run a chapter's cells on its stage: the one source of outputs."""

import datetime
import fcntl
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import nbformat
from jupytext.myst import myst_to_notebook
from nbclient import NotebookClient
from nbclient.exceptions import (
    CellExecutionError,
    CellTimeoutError,
    DeadKernelError,
)
from nbformat.v4 import new_output

from companion.literate.runtime import PREFIX
from companion.literate.source import Book, Chapter, SourceError, read_book
from companion.literate.stage import (
    chapter_parser,
    chosen,
    package_files,
    replace_file,
    reported,
    stage,
)


# chapters/appendix/record.md:545
def as_notebook(chapter: Chapter) -> nbformat.NotebookNode:
    """The chapter's cells as a notebook, not yet run, with stable ids."""
    notebook = myst_to_notebook(chapter.text, add_source_map=True)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        name = hashed(cell.cell_type + cell.source)[:8]
        seen[name] += 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
    check_sources(chapter, code_cells(notebook))
    return notebook


# chapters/appendix/record.md:557
def check_sources(chapter: Chapter, cells: list) -> None:
    """What runs is what tangle takes."""
    for cell, ours in zip(cells, chapter.cells, strict=True):
        if cell.source.rstrip() != ours.source:
            raise ours.error(1, "jupytext reads this cell otherwise: write"
                                " its options as `:key: value` lines")


# chapters/appendix/record.md:567
def hashed(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


# chapters/appendix/record.md:572
def code_cells(notebook) -> list:
    """A notebook's code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# chapters/appendix/record.md:577
def tagged(cell, tag: str) -> bool:
    """Whether a notebook's cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


# chapters/appendix/record.md:595
def environment(folder, scratch) -> dict[str, str]:
    """The kernel sees the stage, and no habits of the reader's own."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(folder).resolve()),
        "IPYTHONDIR": str(scratch),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "SOURCE_DATE_EPOCH": "0",  # no date inside a figure
    }


# chapters/appendix/record.md:635
INK, DATA, GRADIENT, COST = "7c7c7c", "2f7fc1", "c8662f", "96791f"
STYLE = {
    **dict.fromkeys(["axes.facecolor", "figure.facecolor"], "none"),
    **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "grid.color",
                     "text.color", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["axes.spines.right", "axes.spines.top",
                     "legend.frameon"], "False"),
    "axes.prop_cycle": f"cycler('color', {[DATA, GRADIENT, COST]})",
    "axes.titlesize": "medium",
    "grid.alpha": "0.3",
    "savefig.transparent": "True",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "companion",  # the same ids in every run
}


# chapters/appendix/record.md:651
def write_style(scratch: Path) -> None:
    """Matplotlib reads the file of this name in the working folder."""
    lines = [f"{name}: {value}\n" for name, value in STYLE.items()]
    (scratch / "matplotlibrc").write_text("".join(lines))


# chapters/appendix/record.md:663
class Watch:
    """Knows which cell runs, and where the chapter has it."""

    def __init__(self, chapter: Chapter, cells: list):
        self.chapter, self.cells, self.cell = chapter, cells, cells[0]

    def show(self, cell, cell_index) -> None:
        """Called by nbclient before each cell, prose included."""
        if cell.cell_type == "code":
            self.cell = cell
            count = self.cells.index(cell) + 1
            self.tell(f"cell {count} of {len(self.cells)}")

    def tell(self, note: str) -> None:
        """Write over the line that is on the terminal, if it is one."""
        if sys.stderr.isatty():
            text = f"\r{self.chapter.name}: {note} "
            print(text, end="", file=sys.stderr, flush=True)

    def run(self, client, env: dict[str, str]) -> None:
        """Run the notebook; name the chapter's line if a cell fails."""
        try:
            client.execute(env=env)
        except CellExecutionError:
            raise failure(self.chapter, self.cells, self.cell) from None
        except CellTimeoutError:
            raise self.error(f"ran longer than {CELL_TIMEOUT} s") from None
        except DeadKernelError:
            raise self.error("the kernel died in this cell") from None

    # chapters/appendix/record.md:698
    def error(self, message: str) -> SourceError:
        """An error at the first line of the cell that was running."""
        at = self.cells.index(self.cell)
        return self.chapter.cells[at].error(1, message)


# chapters/appendix/record.md:708
CELL_FRAME = re.compile(r"Cell In\[(\d+)\], line (\d+)")
FILE_FRAME = re.compile(r"File \S*?(companion/\S+\.py:\d+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# chapters/appendix/record.md:713
def failure(chapter: Chapter, cells: list, cell) -> SourceError:
    """The error for a cell that raised, traceback included."""
    output = next(o for o in cell.outputs if o.output_type == "error")
    begin = {ran.execution_count: source.line
             for ran, source in zip(cells, chapter.cells, strict=True)}
    lines = [chapter.cells[cells.index(cell)].line]

    def place(frame):
        lines.append(begin[int(frame[1])] + int(frame[2]) - 1)
        return f"{chapter.path}:{lines[-1]}"

    trace = COLOUR.sub("", "\n".join(output.traceback))
    trace = FILE_FRAME.sub(r"File \1", CELL_FRAME.sub(place, trace))
    message = f"{output.ename}: {output.evalue}\n\n{trace}"
    return SourceError(chapter.path, lines[-1], message)


# chapters/appendix/record.md:739
def finish_cells(chapter: Chapter, notebook, device: str | None) -> None:
    """Shorten expected errors; sign what ran on the GPU."""
    pairs = zip(code_cells(notebook), chapter.cells, strict=True)
    for cell, source in pairs:
        errors = [o for o in cell.outputs if o.output_type == "error"]
        if tagged(cell, "raises-exception") and not errors:
            raise source.error(1, "the cell is tagged raises-exception and"
                               " raised nothing: remove the tag, or let it"
                               " fail")
        for output in errors:
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if device and tagged(cell, "gpu"):
            sign_recording(cell, device)


# chapters/appendix/record.md:758
def needs_gpu(notebook) -> bool:
    """Whether any cell is tagged `gpu`."""
    return any(tagged(cell, "gpu") for cell in code_cells(notebook))


# chapters/appendix/record.md:763
def gpu_name() -> str | None:
    """The name of the CUDA device, or None where there is none."""
    if find_spec("cupy") is None:
        return None
    import cupy

    if not cupy.is_available():
        return None
    return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


# chapters/appendix/record.md:774
def sign_recording(cell, device: str) -> None:
    """Note what ran the cell, when, and which source it was."""
    today = datetime.date.today().isoformat()
    source = hashed(cell.source)[:12]
    cell.metadata["recorded"] = {
        "device": device, "date": today, "source": source}


# chapters/appendix/record.md:786
CELL_TIMEOUT = 300  # seconds
KERNEL = ["--InlineBackend.figure_formats={'svg'}",
          "--InteractiveShell.colors=nocolor", "--log-level=ERROR"]


# chapters/appendix/record.md:791
def run_cells(chapter: Chapter, notebook, folder: Path):
    """Execute a copy of the notebook with `folder` on PYTHONPATH."""
    notebook, begin = nbformat.from_dict(notebook), perf_counter()
    device = gpu_name() if needs_gpu(notebook) else None
    with TemporaryDirectory() as scratch:
        write_style(Path(scratch))
        watch = Watch(chapter, code_cells(notebook))
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": scratch}},
            extra_arguments=KERNEL, coalesce_streams=True,
            record_timing=False, on_cell_start=watch.show,
            skip_cells_with_tag="gpu" if device is None else "never",
        )
        watch.run(client, environment(folder, scratch))
    seconds = round(perf_counter() - begin, 2)
    notebook.metadata["execution"] = {"seconds": seconds}
    finish_cells(chapter, notebook, device)
    watch.tell(f"ran in {seconds} s    \n")
    return notebook


# chapters/appendix/record.md:827
ORIGIN_LINE = re.compile(
    r"\s*(?:# (?P<path>chapters/\S+\.md):(?P<line>\d+)"
    r'|#line (?P<c_line>\d+) "(?P<c_path>chapters/\S+\.md)")$'
)


# chapters/appendix/record.md:833
def bare(text: str) -> list[str]:
    """The lines of a generated file, less its header and its origins."""
    lines = text.splitlines()[1:]
    return [line for line in lines if not ORIGIN_LINE.match(line)]


# chapters/appendix/record.md:846
def fingerprint(chapter: Chapter, notebook, files: dict[str, str]) -> str:
    """What the outputs depend on, as one hash."""
    cells = code_cells(notebook)
    program = [[cell.source, cell.metadata.get("tags")] for cell in cells]
    library = {path: bare(text) for path, text in files.items()
               if chapter.beside or is_framework(path)}
    machine = [sys.version, packages(), needs_gpu(notebook) and gpu_name()]
    return hashed(json.dumps([program, library, STYLE, KERNEL, machine]))


# chapters/appendix/record.md:856
def is_framework(path: str) -> bool:
    """Whether a chapter that is no tool's can see the file."""
    tools = "companion/literate/"
    return not path.startswith(tools) or path.endswith("runtime.py")


# chapters/appendix/record.md:862
def packages() -> list[str]:
    """Name and version of all that is installed."""
    return sorted(f"{one.name}=={one.version}" for one in distributions())


# chapters/appendix/record.md:891
@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


UNREADABLE = (ValueError, TypeError, LookupError, AttributeError,
              nbformat.ValidationError)


# chapters/appendix/record.md:904
def cached(path: Path, key: str | None = None):
    """The notebook stored under this key, or under any; None without."""
    if not path.exists():
        return None
    try:
        done = nbformat.read(path, as_version=4)
        known = done.metadata["execution"]["key"]
        return done if key in (None, known) else None
    except UNREADABLE:
        return None


# chapters/appendix/record.md:936
EXECUTED = "_build/executed"


# chapters/appendix/record.md:939
def execute(book: Book, name: str, library: str = "stage"):
    """The chapter as a notebook with all its outputs.

    Runs on the chapter's stage, or on the "final" library. What ran
    before, unchanged, comes from the cache: prose may be edited freely.
    """
    chapter = book.chapter(name)
    notebook = as_notebook(chapter)
    if not chapter.cells:
        return notebook
    upto = name if library == "stage" else None
    path = book.root / EXECUTED / f"{name}-{library}.ipynb"
    with locked(path):
        key = fingerprint(chapter, notebook, package_files(book, upto))
        done = cached(path, key)
        if done is None:
            done = run_cells(chapter, notebook, stage(book, upto))
            done.metadata["execution"]["key"] = key
            replace_file(path, nbformat.writes(done))
    fill(notebook, done)
    check_claims(chapter, notebook)
    insert_recorded(book, name, notebook)
    return notebook


# chapters/appendix/record.md:966
def fill(notebook, done) -> None:
    """Give the cells of `notebook` the outputs of those in `done`."""
    pairs = zip(code_cells(notebook), code_cells(done), strict=True)
    for cell, ran in pairs:
        cell.outputs = ran.outputs
        cell.execution_count = ran.execution_count
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
    notebook.metadata["execution"] = done.metadata["execution"]


# chapters/appendix/record.md:984
def check_claims(chapter: Chapter, notebook) -> None:
    """Refuse claims that are compared, or false on the reference."""
    reference = os.environ.get("COMPANION_REFERENCE")
    cells = zip(code_cells(notebook), chapter.cells, strict=True)
    for source, name, text, holds in claims(cells):
        line = source.source.partition(f'"{name}"')[0].count("\n") + 1
        if "timing" not in source.tags:
            raise source.error(line, f"the claim {name} depends on what was"
                               " measured: tag its cell timing")
        if reference and not holds:
            raise source.error(line, f"the claim {name} does not hold, and"
                               " COMPANION_REFERENCE is set: mend the program"
                               f" or the sentence; the page says {text!r}")


# chapters/appendix/record.md:999
def claims(cells) -> Iterator[tuple]:
    """The cell, name, text and truth of each claim among the outputs."""
    for cell, source in cells:
        for output in cell.outputs:
            about = output.get("metadata", {})
            if "holds" in about:
                text = output.data[PREFIX + "text/plain"]
                yield source, about["scrapbook"]["name"], text, about["holds"]


# chapters/appendix/record.md:1015
RECORD = "site/notebooks"


# chapters/appendix/record.md:1018
def insert_recorded(book: Book, name: str, notebook) -> None:
    """Show, where no GPU ran them, what the record has of `gpu` cells."""
    waiting = [cell for cell in code_cells(notebook)
               if tagged(cell, "gpu") and cell.execution_count is None]
    known = recorded_cells(book.root / RECORD / f"{name}.ipynb")
    for cell, ran in zip(waiting, paired(waiting, known), strict=True):
        if ran:
            cell.metadata["recorded"] = ran.metadata["recorded"]
            cell.outputs = ran.outputs
        cell.outputs = [label(cell), *cell.outputs]


# chapters/appendix/record.md:1030
def paired(waiting: list, known: list) -> list:
    """For each cell its recording: of its source, or else of its place."""
    same = {ran.metadata["recorded"]["source"]: ran for ran in known}
    keys = [hashed(cell.source)[:12] for cell in waiting]
    if len(keys) != len(known):  # cells came or went: places say nothing
        known = [None] * len(keys)
    free = [ran if ran and ran.metadata["recorded"]["source"] not in keys
            else None for ran in known]
    return [same.get(key, ran) for key, ran in zip(keys, free, strict=True)]


# chapters/appendix/record.md:1043
def recorded_cells(path: Path) -> list:
    """The cells of a notebook that were recorded on a GPU."""
    if not path.exists():
        return []
    cells = code_cells(read_record(path))
    return [cell for cell in cells if "recorded" in cell.metadata]


# chapters/appendix/record.md:1051
def read_record(path: Path):
    """A notebook of the record; a GPU's outputs are nowhere else."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except UNREADABLE:
        shown = f"{RECORD}/{path.name}"
        message = f"no notebook: restore it, with `git restore {shown}`"
        raise SourceError(shown, 1, message) from None


# chapters/appendix/record.md:1083
def label(cell):
    """An output that says where the outputs below it come from."""
    note = "Not run here: this cell needs an NVIDIA GPU."
    if recorded := cell.metadata.get("recorded"):
        note = "Recorded on {device}, {date}; source {source}"
        note = note.format(**recorded)
        if recorded["source"] != hashed(cell.source)[:12]:
            note += ", an earlier version of this cell"
    data = {"text/plain": note, "text/html": f"<em>{note}</em>"}
    return new_output("display_data", data, metadata={"companion": "label"})


# chapters/appendix/record.md:1192
def run_chapters(options) -> None:
    """Execute the chosen chapters, one after the other."""
    book = read_book()
    for name in chosen(book, options):
        done = execute(book, name, options.library)
        print(f"{name}: {done.metadata['execution']['seconds']} s")


# chapters/appendix/record.md:1200
def main(argv: list[str]) -> int:
    """Run each chapter's cells on its stage, as far as they changed."""
    parser = chapter_parser("execute", str(main.__doc__))
    libraries = ["stage", "final"]
    parser.add_argument("--library", choices=libraries, default="stage")
    return reported(run_chapters, parser.parse_args(argv))
