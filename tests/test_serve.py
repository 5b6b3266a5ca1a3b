"""A changed source is built again, and the browser told to reload."""

import os
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from websockets.sync.client import connect

MAKEFILE = """\
book:
\tmkdir -p _build/html
\t(echo '<html><body>'; cat chapters/a.md; echo '</body></html>') \
> _build/html/index.html
"""


@pytest.fixture
def served(tmp_path, root):
    """A folder that is being served, and the address."""
    for folder in ("chapters", "site"):
        (tmp_path / folder).mkdir()
    for file in ("intro.md", "_config.yml", "_toc.yml", "chapters/a.md"):
        (tmp_path / file).write_text("first")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "companion", "serve", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    )
    yield tmp_path, f"127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


def page(address):
    """The page, as soon as there is one."""
    for _ in range(100):
        try:
            return urlopen(f"http://{address}/").read().decode()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


@pytest.mark.slow
def test_an_edited_page_is_rebuilt_and_reloaded(served):
    folder, address = served
    first = page(address)
    assert "first" in first and "websocket-reload" in first
    with connect(f"ws://{address}/websocket-reload") as browser:
        time.sleep(0.5)  # the watcher starts beside the server
        (folder / "chapters/a.md").write_text("second")
        assert browser.recv(timeout=20) == "refresh"
    assert "second" in page(address)
