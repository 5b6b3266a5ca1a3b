"""A changed source is built again, and the browser told to reload."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from small_book import cell, page as page_of_a_book, small_book
from websockets.sync.client import connect

from companion.literate import serve
from companion.literate.names import names_in
from companion.literate.serve import ignored, listen, main, rebuild
from companion.literate.source import read_myst
from companion.literate.tangle import tangle

MAKEFILE = """\
book:
\tmkdir -p _build/html
\t(echo '<html><body>'; cat chapters/appendix/a.md; echo '</body></html>') \
> _build/html/index.html
"""


@pytest.fixture
def folder(tmp_path):
    """A book of one tool's page, in a folder called like the record."""
    folder = tmp_path / "notebooks"
    for name in ("chapters/appendix", "site"):
        (folder / name).mkdir(parents=True)
    for file in ("intro.md", "_toc.yml", "chapters/appendix/a.md"):
        (folder / file).write_text("first")
    (folder / "_config.yml").write_text("sphinx: {config: {extensions: []}}")
    (folder / "Makefile").write_text(MAKEFILE)
    return folder


@pytest.fixture
def served(folder, root):
    """A folder that is being served, and the address."""
    command = [sys.executable, "-m", "companion", "serve", "--port=0"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE
    ) as process:
        told = next(line for line in process.stdout if "http" in line)
        yield folder, told.split("/")[2]
        process.send_signal(signal.SIGINT)  # Ctrl+C
        assert process.wait(20) == 0


def page(address):
    """The page, as soon as the server answers."""
    for _ in range(100):
        try:
            return urlopen(f"http://{address}/").read().decode()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_what_would_make_the_wait_futile(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with listen(0) as taken:
        port = taken.getsockname()[1]
        for wrong, why in [(port, "in use"), (99999, "0-65535")]:
            with pytest.raises(SystemExit):
                main([f"--port={wrong}"])
            told = capsys.readouterr().err.splitlines()[-1]
            assert f"--port {wrong}: " in told and why in told
    monkeypatch.chdir(folder / "site")
    with pytest.raises(SystemExit):
        main([])
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"no chapters in {folder / 'site'}: run this in" in told
    assert list((folder / "site").iterdir()) == []


def test_what_a_build_leaves_behind_is_no_change(folder, monkeypatch):
    monkeypatch.chdir(folder)
    left = "notebooks/a.ipynb __pycache__/a.pyc .a.md.swp #a.md# a.md~"
    assert all(ignored(str(folder / "site" / name)) for name in left.split())
    for changed in ("site/static/a.css", "site/landing.py", "intro.md"):
        assert not ignored(str(folder / changed))


@pytest.mark.slow
def test_an_edited_page_is_rebuilt_and_reloaded(served):
    folder, address = served
    first = page(address)
    assert "first" in first and "websocket-reload" in first
    with connect(f"ws://{address}/websocket-reload") as browser:
        time.sleep(0.5)  # the watcher starts beside the server
        (folder / "chapters/appendix/a.md").write_text("second")
        assert browser.recv(timeout=20) == "refresh"
    assert "second" in page(address)


def test_what_was_not_edited_is_not_read_again(tmp_path):
    pages = {
        name: page_of_a_book(
            name, cell(f"def {name}():\n    return 1", "tangle")
        )
        for name in ("first", "second")
    }
    tangle(small_book(tmp_path, **pages))
    counts = read_myst, names_in
    before = [kept.cache_info().misses for kept in counts]
    pages["second"] += "One more paragraph.\n"
    tangle(small_book(tmp_path, **pages))
    after = [kept.cache_info().misses for kept in counts]
    assert [b - a for a, b in zip(before, after)] == [1, 0]


def test_a_rebuild_finds_the_book_read(tmp_path, monkeypatch):
    tangled = cell("def ready():\n    return 1", "tangle")
    small_book(tmp_path, first=page_of_a_book("first", tangled))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "execute_book", lambda _: 1)  # no weaving
    try:
        serve.make_ready()
        before = read_myst.cache_info().misses, names_in.cache_info().misses
        assert serve.tangle_book([]) == 0 and gc.get_freeze_count() > 0
        after = read_myst.cache_info().misses, names_in.cache_info().misses
        assert before == after
    finally:
        gc.unfreeze()


def test_an_edit_is_built_as_far_as_it_goes(monkeypatch, capsys):
    """A failure is told, and the server lives to see the next edit."""
    called, status = [], dict.fromkeys(["tangle_book", "execute_book"], 0)

    def step(name):
        return lambda _: called.append(name) or status[name]

    def weave(*_, **__):
        called.append("weave")
        raise RuntimeError("a warning, as an error")

    for name in status:
        monkeypatch.setattr(serve, name, step(name))
    monkeypatch.setattr(serve, "weave", weave)
    monkeypatch.setattr(serve, "make_book", lambda: called.append("make"))
    rebuild([Path("chapters/tensors/arrays.md")])
    assert called == ["tangle_book", "execute_book", "weave"]
    assert "a warning, as an error" in capsys.readouterr().out
    called.clear()
    status["execute_book"] = 1
    rebuild([Path("intro.md")])
    assert called == ["tangle_book", "execute_book"]
    called.clear()
    rebuild([Path("chapters/appendix/tangle.md"), Path("intro.md")])
    rebuild([Path("site/landing.py")])
    assert called == ["make", "make"]
