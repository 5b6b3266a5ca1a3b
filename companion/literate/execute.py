# Tangled from record: edit there, `make tangle`. sha256:618b65149417
"""Run a chapter's cells on its stage: the one source of outputs."""

import datetime
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED, Future, ProcessPoolExecutor, wait)
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from functools import cache, cached_property
from importlib.metadata import (
    PackageNotFoundError, distribution, packages_distributions)
from importlib.util import find_spec
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import (
    CellExecutionError, CellTimeoutError, DeadKernelError)
from nbformat.v4 import (
    new_code_cell, new_markdown_cell, new_notebook, new_output)

from companion.literate.runtime import PREFIX
from companion.literate.source import (
    CONTENT_TAGS, Book, Cell, Chapter, SourceError, compared)
from companion.literate.stage import (
    chapter_parser, chosen, lent, reported, stage)
from companion.literate.tangle import tangle, tangled
from companion.literate.write import replace_file


def as_notebook(chapter: Chapter) -> nbformat.NotebookNode:
    """The chapter's cells as a notebook, not yet run, with stable ids."""
    found = {block.line: new_markdown_cell(block.body)
             for block in chapter.prose}
    for code in chapter.cells:
        made = new_code_cell(code.source, metadata=code.options)
        found[code.line] = made
    cells, seen = [found[line] for line in sorted(found)], Counter[str]()
    for cell in cells:
        name = hashed(cell.cell_type + cell.source)[:8]
        seen[name] += 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
    lines = [line - 2 for line in sorted(found)]  # MyST-NB adds one twice
    about = chapter.front | {"source_map": lines}
    return new_notebook(cells=cells, metadata=about)


def hashed(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def code_cells(notebook) -> list:
    """A notebook's code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(cell, tag: str) -> bool:
    """Whether a notebook's cell carries a tag."""
    return tag in tags(cell)


def tags(cell) -> list[str]:
    """The tags of a notebook's cell."""
    return cell.metadata.get("tags", [])


def environment(folder, scratch) -> dict[str, str]:
    """The kernel sees the stage, and no habits of the reader's own."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(folder).resolve()),
        "IPYTHONDIR": str(scratch),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "SOURCE_DATE_EPOCH": "0",  # no date inside a figure
    }


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


def write_style(scratch: Path) -> None:
    """Matplotlib reads the file of this name in the working folder."""
    lines = [f"{name}: {value}\n" for name, value in STYLE.items()]
    (scratch / "matplotlibrc").write_text("".join(lines))


class Room:
    """Where cells run: with others, or alone while they take the time.

    All processes that work on one book share it. Two locked files
    make it, and the operating system opens them when a process ends.
    """

    def __init__(self, root: Path):
        self.folder, self.waited = root / "_build", 0.0

    def __enter__(self) -> "Room":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.gate, self.room = map(self.door, ("gate", "room"))
        self.enter()
        return self

    def __exit__(self, *error) -> None:
        os.close(self.room)
        os.close(self.gate)

    def door(self, name: str) -> int:
        """A file to lock, opened."""
        return os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT)

    def enter(self, alone: bool = False) -> None:
        """Leave, and come back when there is room for the next cell."""
        mode, begin = (LOCK_EX if alone else LOCK_SH), perf_counter()
        flock(self.room, LOCK_UN)
        flock(self.gate, mode)
        flock(self.room, mode)
        flock(self.gate, LOCK_UN)
        self.waited += perf_counter() - begin


class Watch:
    """Knows which cell runs, and where the chapter has it."""

    def __init__(self, chapter: Chapter, cells: list, room: Room):
        self.chapter, self.cells, self.cell = chapter, cells, cells[0]
        self.room = room

    def show(self, cell, cell_index) -> None:
        """Called by nbclient before each cell, prose included."""
        if cell.cell_type == "code":
            self.cell = cell
            count = self.cells.index(cell) + 1
            tell(f"{self.chapter.name}: cell {count} of {len(self.cells)}")
            unread = "COMPANION_CROWDED" in os.environ
            self.room.enter(alone=tagged(cell, "timing") and not unread)

    def run(self, client, env: dict[str, str]) -> None:
        """Run the notebook; name the chapter's line if a cell fails."""
        try:
            client.execute(env=env)
        except CellExecutionError as error:
            raise failure(self.chapter, self.cells, self.cell,
                          error) from None
        except CellTimeoutError:
            raise self.error(f"ran longer than {CELL_TIMEOUT} s") from None
        except DeadKernelError:
            raise self.error("the kernel died in this cell") from None

    def error(self, message: str) -> SourceError:
        """An error at the first line of the cell that was running."""
        at = self.cells.index(self.cell)
        return self.chapter.cells[at].error(1, message)


def tell(note: str) -> None:
    """Write over the last line of a terminal; a file is told nothing."""
    if sys.stderr.isatty():
        print(f"\r{note}\x1b[K", end="", file=sys.stderr, flush=True)


CELL_FRAME = re.compile(r"Cell In\[(\d+)\], line (\d+)")
FILE_FRAME = re.compile(r"File \S*?(companion/\S+\.py:\d+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def failure(chapter: Chapter, cells: list, cell, error) -> SourceError:
    """The error for a cell that raised, with its traceback, if any."""
    # IPython cannot print every error: then it has no output of its own.
    shown = [line for output in cell.outputs
             for line in output.get("traceback", ())]
    begin = {ran.execution_count: source.line
             for ran, source in zip(cells, chapter.cells, strict=True)}
    lines = [chapter.cells[cells.index(cell)].line]

    def place(frame):
        if int(frame[1]) not in begin:
            return frame[0]
        lines.append(begin[int(frame[1])] + int(frame[2]) - 1)
        return f"{chapter.path}:{lines[-1]}"

    trace = COLOUR.sub("", "\n".join(shown))
    trace = FILE_FRAME.sub(r"File \1", CELL_FRAME.sub(place, trace))
    message = f"{error.ename}: {error.evalue}\n\n{trace}"
    return SourceError(chapter.path, lines[-1], message)


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


def needs_gpu(chapter: Chapter) -> bool:
    """Whether any cell is tagged `gpu`."""
    return any("gpu" in cell.tags for cell in chapter.cells)


@cache
def gpu_name() -> str | None:
    """The name of the CUDA device, or None where there is none."""
    if find_spec("cupy") is None:
        return None
    import cupy

    if not cupy.is_available():
        return None
    return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


def sign_recording(cell, device: str) -> None:
    """Note what ran the cell, when, and which source it was."""
    today = datetime.date.today().isoformat()
    source = hashed(cell.source)[:12]
    cell.metadata["recorded"] = {
        "device": device, "date": today, "source": source}


CELL_TIMEOUT = 300  # seconds
KERNEL = ["--InlineBackend.figure_formats={'svg'}",
          "--InteractiveShell.colors=nocolor", "--log-level=ERROR"]


def run_cells(chapter: Chapter, folder: Path, room: Room):
    """The chapter's notebook, run with `folder` on PYTHONPATH."""
    notebook, begin = as_notebook(chapter), perf_counter()
    device = gpu_name() if needs_gpu(chapter) else None
    with TemporaryDirectory() as scratch, room:
        write_style(Path(scratch))
        watch = Watch(chapter, code_cells(notebook), room)
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=CELL_TIMEOUT,
            resources={"metadata": {"path": scratch}},
            extra_arguments=KERNEL, coalesce_streams=True,
            record_timing=False, on_cell_start=watch.show,
            skip_cells_with_tag="gpu" if device is None else "never",
        )
        watch.run(client, environment(folder, scratch))
    seconds = round(perf_counter() - begin - room.waited, 2)
    notebook.metadata["execution"] = {"seconds": seconds}
    finish_cells(chapter, notebook, device)
    return notebook


def bare(text: str) -> list[str]:
    """The lines of a generated file, less its header and its origins."""
    lines = text.splitlines()[1:]
    return [line for line in lines if not line.startswith("#line ")]


IMPORT = re.compile(r"^[ \t]*(?:from|import)\b(?:[^\n(]|\([^)]*\))*", re.M)


def outline(book: Book) -> str:
    """A hash of all that decides what a book tangles to, bare."""
    pages = [[chapter.front.get("companion"), *map(essence, chapter.cells)]
             for chapter in book.tangle_order]
    return hashed(json.dumps([pages, tools_at_work()]))


@cache
def tools_at_work() -> dict[str, list[str]]:
    """The bare files of the tools that are running."""
    return {path: bare(text) for path, text in lent().items()}


@cache
def essence(cell: Cell) -> list:
    """What tangle reads of a cell; of one that stays here, its imports."""
    if not cell.target:
        return IMPORT.findall(cell.source)
    return [cell.target, cell.language, cell.source, cell.tags, cell.replaces]


BARE = "_build/bare"
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError,
              nbformat.ValidationError)


def bare_files(book: Book) -> dict[str, list[str]]:
    """The files that a book tangles to, bare; kept from run to run."""
    order = " ".join(chapter.name for chapter in book.tangle_order)
    path = book.root / BARE / f"{hashed(order)[:12]}.json"
    key = outline(book)
    with suppress(OSError, *UNREADABLE):
        kept = json.loads(path.read_text("utf-8"))
        if kept["key"] == key:
            return kept["files"]
    files = {name: bare(text) for name, text in tangle(book).files.items()}
    replace_file(path, json.dumps({"key": key, "files": files}))
    return files


KERNEL_PACKAGES = ("ipykernel", "nbclient")
NAMED = re.compile(r"""["']([a-z]\w*)["']""")


@cache
def providers() -> dict[str, list[str]]:
    """Which installed packages bring a module of a name."""
    return dict(packages_distributions())


def mentioned(source: str) -> set[str]:
    """The modules that a text imports, or a part of it might."""
    return set(re.findall(r"\w+", " ".join(IMPORT.findall(source))))


@cache
def installed(package: str) -> tuple[str, frozenset[str]]:
    """A package with its version, and the packages it needs."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return package, frozenset()
    needs = [line for line in found.requires or [] if "extra ==" not in line]
    names = [re.match(r"[\w.-]+", line) for line in needs]
    return f"{package}=={found.version}", frozenset(n[0] for n in names if n)


def packages(chapter: Chapter, library: dict[str, list[str]]) -> list[str]:
    """Name and version of all that a chapter can import."""
    modules = set()
    for cell in chapter.cells:
        modules |= mentioned(cell.source) | set(NAMED.findall(cell.source))
    for path, lines in library.items():
        if path.endswith(".py"):
            modules |= mentioned("\n".join(lines))
    imported = (providers().get(name, []) for name in modules)
    return sorted(needed({*KERNEL_PACKAGES}.union(*imported)).values())


def needed(waiting: set[str]) -> dict[str, str]:
    """These packages and all that they need, each with its version."""
    found: dict[str, str] = {}
    while waiting:
        package = waiting.pop()
        found[package], needs = installed(package)
        waiting |= needs - set(found)
    return found


def fingerprint(chapter: Chapter, files: dict[str, list[str]]) -> str:
    """What the outputs depend on, as one hash; `files` are bare."""
    program = [[cell.source, sorted({*cell.tags} & {*CONTENT_TAGS})]
               for cell in chapter.cells]
    library = {path: lines for path, lines in (tools_at_work() | files).items()
               if chapter.beside or is_framework(path)}
    gpu = gpu_name() if needs_gpu(chapter) else None
    machine = [sys.version, packages(chapter, library), gpu]
    return hashed(json.dumps([program, library, STYLE, KERNEL, machine]))


def is_framework(path: str) -> bool:
    """Whether a chapter that is no tool's can see the file."""
    tools, tests = "companion/literate/", "tests/"
    return path.endswith("runtime.py") or not path.startswith((tools, tests))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        flock(lock, LOCK_EX)
        yield


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


EXECUTED = "_build/executed"


class Run:
    """A chapter on its stage, or on the "final" library."""

    def __init__(self, book: Book, name: str, library: str = "stage"):
        self.book, self.chapter = book, book.chapter(name)
        self.upto = name if library == "stage" else None
        self.path = book.root / EXECUTED / f"{name}-{library}.ipynb"

    @cached_property
    def key(self) -> str:
        """What the outputs depend on."""
        seen = self.book.before(self.upto) if self.upto else self.book
        return fingerprint(self.chapter, bare_files(seen))

    def unchanged(self) -> bool:
        """Whether it ran before, and would say the same."""
        return self.last().get("key") == self.key

    def last(self) -> dict:
        """What the last execution noted: its key, and its seconds."""
        with suppress(OSError, *UNREADABLE):
            text = self.path.read_text("utf-8")
            return json.loads(text)["metadata"]["execution"]
        return {}

    def done(self):
        """The executed notebook: what was kept, or of a new run."""
        with locked(self.path):
            done = cached(self.path, self.key)
            if done is None:
                folder = stage(self.book, self.upto)
                done = run_cells(self.chapter, folder, Room(self.book.root))
                done.metadata["execution"]["key"] = self.key
                replace_file(self.path, nbformat.writes(done))
            return done

    def expected(self) -> float | None:
        """The seconds that the last run took, here or in the record."""
        found = self.last().get("seconds")
        record = self.book.root / RECORD / f"{self.chapter.name}.ipynb"
        if found is None and record.exists():
            found = read_record(record).metadata.get("seconds")
        return found


def execute(book: Book, name: str, library: str = "stage"):
    """The chapter as a notebook with all its outputs.

    Runs on the chapter's stage, or on the "final" library. What ran
    before, unchanged, comes from the cache: prose may be edited freely.
    """
    run = Run(book, name, library)
    notebook = as_notebook(run.chapter)
    if run.chapter.cells:
        fill(notebook, run.done())
        check_claims(run.chapter, notebook)
        insert_recorded(book, name, notebook)
    return notebook


def fill(notebook, done) -> None:
    """Give the cells of `notebook` the outputs of those in `done`."""
    pairs = zip(code_cells(notebook), code_cells(done), strict=True)
    for cell, ran in pairs:
        cell.outputs = ran.outputs
        cell.execution_count = ran.execution_count
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
    notebook.metadata["execution"] = done.metadata["execution"]


def check_claims(chapter: Chapter, notebook) -> None:
    """Refuse claims that are compared, or false on the reference."""
    reference = os.environ.get("COMPANION_REFERENCE")
    cells = zip(code_cells(notebook), chapter.cells, strict=True)
    for source, name, text, holds in claims(cells):
        line = source.source.partition(f'"{name}"')[0].count("\n") + 1
        if compared(source.tags):
            raise source.error(line, f"the claim {name} depends on what was"
                               " measured: tag its cell timing or varies")
        if reference and not holds:
            raise source.error(line, f"the claim {name} does not hold, and"
                               " COMPANION_REFERENCE is set: mend the program"
                               f" or the sentence; the page says {text!r}")


def claims(cells) -> Iterator[tuple]:
    """The cell, name, text and truth of each claim among the outputs."""
    for cell, source in cells:
        for output in cell.outputs:
            about = output.get("metadata", {})
            if "holds" in about:
                text = output.data[PREFIX + "text/plain"]
                yield source, about["scrapbook"]["name"], text, about["holds"]


RECORD = "site/notebooks"


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


def paired(waiting: list, known: list) -> list:
    """For each cell its recording: of its source, or else of its place."""
    same = {ran.metadata["recorded"]["source"]: ran for ran in known}
    keys = [hashed(cell.source)[:12] for cell in waiting]
    if len(keys) != len(known):  # cells came or went: places say nothing
        known = [None] * len(keys)
    free = [ran if ran and ran.metadata["recorded"]["source"] not in keys
            else None for ran in known]
    return [same.get(key, ran) for key, ran in zip(keys, free, strict=True)]


def recorded_cells(path: Path) -> list:
    """The cells of a notebook that were recorded on a GPU."""
    if not path.exists():
        return []
    cells = code_cells(read_record(path))
    return [cell for cell in cells if "recorded" in cell.metadata]


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


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forecast(seconds: Sequence[float | None], side_by_side: int) -> str:
    """How long runs will take that took these times; None: unknown."""
    known = [one for one in seconds if one is not None]
    if not known:
        return "for the first time"
    whole = sum(known) * len(seconds) / len(known)
    about = max(whole / side_by_side, *known)
    return f"about {duration(about)}"


def duration(seconds: float) -> str:
    """A time for people: `40 s`, `3 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def run_chapters(options) -> int:
    """Execute the chosen chapters, as many at once as can run."""
    book, _ = tangled()
    runs = [Run(book, name, options.library)
            for name in chosen(book, options)]
    waiting = []
    for run in runs:
        if run.unchanged():
            print(f"{run.chapter.name}: unchanged")
        else:
            waiting.append((run.expected(), run))
    waiting.sort(key=lambda pair: -(pair[0] or 0))
    if waiting:
        seconds, changed = zip(*waiting, strict=True)
        several = f"{len(changed)} of {len(runs)} chapters to execute"
        print(f"{several}, {forecast(seconds, processors())}:", flush=True)
        return run_all(changed)
    return 0


def run_all(runs: Iterable[Run]) -> int:
    """Execute chapters side by side; 1 if any of them fails."""
    waiting, failed = iter(runs), 0
    jobs: dict[Future, Run] = {}
    with ProcessPoolExecutor(
            processors(), initializer=end_with_parent) as pool:
        while True:
            free = 0 if failed else processors() - len(jobs)
            for run in islice(waiting, free):
                jobs[pool.submit(run_one, run)] = run
            if not jobs:
                return failed
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                failed |= reported(print_run, jobs.pop(job), job)


def print_run(run: Run, job: Future) -> None:
    """Print the line of a chapter that is done."""
    seconds = job.result()
    tell("")
    print(f"{run.chapter.name}: executed in {seconds:.1f} s", flush=True)


def run_one(run: Run) -> float:
    """Execute one chapter; the seconds it took."""
    return run.done().metadata["execution"]["seconds"]


def end_with_parent() -> None:
    """See to it that this process does not outlive its parent."""
    def watch() -> None:
        parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Run each chapter's cells on its stage, as far as they changed."""
    parser = chapter_parser("execute", str(main.__doc__))
    libraries = ["stage", "final"]
    parser.add_argument("--library", choices=libraries, default="stage")
    return reported(run_chapters, parser.parse_args(argv))
