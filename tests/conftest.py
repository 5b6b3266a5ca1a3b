"""Tools that a machine may lack: a reader is told, CI fails."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ASK = [sys.executable, "-m", "pip", "index", "versions", "numpy"]
TOOLS = {
    "chromium": (
        lambda: next(filter(None, map(shutil.which, BROWSERS)), None),
        "install Chromium (Debian, Ubuntu: apt install chromium)",
    ),
    "cupy": (
        lambda: importlib.util.find_spec("cupy"),
        "run on Linux and x86-64, for which CuPy has a wheel",
    ),
    "torch": (
        lambda: importlib.util.find_spec("torch"),
        "install PyTorch (.venv/bin/pip install torch==2.13.0)",
    ),
    "mpi": (
        lambda: not importlib.import_module("companion.distributed").no_mpi(),
        "run on Linux and x86-64, for which MPI has wheels, where "
        "companion.distributed.no_mpi() has nothing to say",
    ),
    "network": (
        lambda: not subprocess.run(ASK, capture_output=True).returncode,
        "connect to a network",
    ),
    "datasets": (
        lambda: os.environ.get("COMPANION_DATA"),
        "put the real files into a folder named by COMPANION_DATA",
    ),
    "gpu": (
        lambda: shutil.which("nvidia-smi"),
        "run on a machine with an NVIDIA GPU",
    ),
}
THREADS = ("COMPANION_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
           "OMP_NUM_THREADS")
NOWHERE_IN_CI = ("gpu", "datasets")  # hardware; and 340 MB from elsewhere

settings.register_profile("book", deadline=None, print_blob=True)
settings.load_profile("book")


@pytest.fixture(autouse=True)
def working_folder(request):
    """A test that walks into another folder comes back."""
    yield
    start = request.config.invocation_params.dir
    assert Path.cwd() == start, "the test left its working folder behind"


def need_tool(tool, what=""):
    """Where `tool` is; where it is not, skip and say how to get it."""
    find, remedy = TOOLS[tool]
    found = find()
    if not found:
        who = f"{what}: " if what else ""
        pytest.skip(f"{who}needs {tool}: {remedy}")
    return found


@pytest.fixture(scope="session")
def need():
    """`need("chromium")` gives the tool or skips the test."""
    return need_tool


DEVICES = [
    "cpu",
    "lazy",
    pytest.param("emulated", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.needs("gpu")),
]


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Each device on which every operation is tested."""
    return importlib.import_module("companion.device").named(request.param)


@pytest.fixture(scope="session")
def root():
    """The folder of the book."""
    return ROOT


@pytest.fixture(scope="session")
def extension(root):
    """`extension("landing")` is site/landing.py; no package holds it."""

    def load(name):
        path = root / "site" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def site(root):
    """The built site, which `make book` leaves in _build/html."""
    folder = root / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail(f"no site in {folder}: run `make book` first")
    return folder


def pytest_configure(config):
    """Workers share the processors: no thread waits for a neighbour's."""
    workers = config.getoption("numprocesses", None)
    if workers:
        share = max(1, (os.cpu_count() or 1) // workers)
        for name in THREADS:
            os.environ.setdefault(name, str(share))


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        need_tool(*marker.args)


class OneByOne(LoadScopeScheduling):
    """Gives workers tests in order, and together what one prepares."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        if file.endswith(DRAWN):
            return file + nodeid.rpartition("-")[2]
        return file if file.endswith(WHOLE) else nodeid


def pytest_xdist_make_scheduler(config, log):
    """How `-n` distributes the tests."""
    config.option.loadscopereorder = False
    return OneByOne(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what needs a GPU; begin with what takes long."""
    yield
    leave_out_gpu(config, items)
    items.sort(key=haste)


def leave_out_gpu(config, items):
    """Without a GPU, one test a module stands for all that need one."""
    find, _ = TOOLS["gpu"]
    skipped = [] if find() else list(filter(needs_gpu, items))
    modules = Counter(item.path for item in skipped)
    first = {item.path: item for item in reversed(skipped)}
    for path, item in first.items():
        more = f"{modules[path]} tests of {path.name}"
        item.add_marker(pytest.mark.needs("gpu", more), append=False)
    left = [item for item in skipped if item is not first[item.path]]
    out = set(map(id, left))
    items[:] = [item for item in items if id(item) not in out]
    config.hook.pytest_deselected(items=left)


LONG = """
test_colab.py site/notebooks test_stages.py test_milestones.py
test_gates.py browser test_weave.py
""".split()
# One kernel, one environment, one built book.
WHOLE = (".ipynb", "test_colab.py", "tests/test_weave.py")
DRAWN = "test_every_operation.py"  # the draws of an operation


def haste(item):
    """The place of a test in the order in which tests begin."""
    path = item.path.as_posix()
    found = (n for n, part in enumerate(LONG) if f"/{part}" in path)
    return next(found, len(LONG))


def needs_gpu(item):
    """Whether a test runs on the real device alone."""
    return any("gpu" in marker.args for marker in item.iter_markers("needs"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return refuse_skip((yield))


def refuse_skip(report):
    """In CI nothing skips but what no CI machine can have."""
    if "CI" in os.environ and report.outcome == "skipped":
        reason = str(report.longrepr[-1])
        allowed = any(f"needs {tool}:" in reason for tool in NOWHERE_IN_CI)
        if not allowed and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"{reason} (in CI a skip is a failure)"
    return report


@pytest.fixture(scope="session")
def clone(root, tmp_path_factory):
    """The working tree as a repository of its own, with one commit."""
    folder = tmp_path_factory.mktemp("clone") / root.name
    listed = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=root).split(b"\0"):
        source, target = root / name.decode(), folder / name.decode()
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    who = ["-c", "user.name=Reader", "-c", "user.email=reader@example.org"]
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*who, "commit", "--quiet", "--message=The working tree"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """`bare("numpy")` makes an environment of that, and gives its Python.

    The packages, and those they need, are copies of what is used here.
    """
    from companion.literate.execute import needed

    def make(*packages):
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (place,) = folder.glob("lib/python*/site-packages")
        for package, found in needed({*packages}).items():
            if found != package:  # else it is absent: another system's
                copy_package(distribution(package), place)
        return folder / "bin" / "python"

    return make


def copy_package(package, folder):
    """Install what is installed elsewhere, its scripts left out."""
    for file in package.files:
        if ".." not in file.parts:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(package.locate_file(file), target)
