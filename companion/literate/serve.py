# Tangled from record: edit there, `make tangle`. sha256:fe01a8729412
"""Serve the built site; rebuild and reload it when a source changes."""

import argparse
import gc
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from jupyter_book.cli.main import build as weave
from sphinx_autobuild.middleware import JavascriptInjectorMiddleware
from sphinx_autobuild.server import RebuildServer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles

from companion.literate.execute import RECORD, main as execute_book
from companion.literate.tangle import main as tangle_book

SITE = Path("_build/html")
WATCHED = ("chapters", "site", "intro.md", "_config.yml", "_toc.yml")


def make_book() -> bool:
    """Build the book; if it fails, the reason stands in the terminal."""
    return not subprocess.run(["make", "book"], check=False).returncode


def rebuild(changed_paths: Sequence[Path]) -> None:
    """Build what has changed, with what is imported already."""
    for path in changed_paths:
        print("changed:", path, flush=True)
    if any(is_tool(path) for path in changed_paths):
        make_book()
    elif not tangle_book([]) and not execute_book([]):
        try:
            weave([".", "-W", "-n", "--keep-going", "-q"],
                  standalone_mode=False)
        except (RuntimeError, SystemExit) as error:
            print(error, flush=True)  # the next edit may mend it


def is_tool(path: Path) -> bool:
    """Whether a change may change what has been imported."""
    return path.suffix == ".py" or "appendix" in path.parts


def make_ready() -> None:
    """Build what is built already: a rebuild is forked from here.

    It finds imported, read and prepared what it needs.
    """
    rebuild([])
    gc.freeze()


def ignored(path: str) -> bool:
    """The record, and what editors, browsers and Python leave behind."""
    name, record = Path(path).name, Path(RECORD).resolve()
    left = name.startswith((".", "#")) or name.endswith(("~", ".pyc"))
    return left or record in Path(path).parents


def application(address: str) -> Starlette:
    """The site as a web application that knows when to reload."""
    SITE.mkdir(parents=True, exist_ok=True)
    watcher = RebuildServer(WATCHED, ignored, change_callback=rebuild)
    routes = [WebSocketRoute("/websocket-reload", watcher),
              Mount("/", app=StaticFiles(directory=SITE, html=True))]
    reload = Middleware(JavascriptInjectorMiddleware, ws_url=address)
    return Starlette(routes=routes, middleware=[reload],
                     lifespan=watcher.lifespan)


def listen(port: int) -> socket.socket:
    """The port, ours from now on; 0 stands for any that is free."""
    absent = [name for name in WATCHED if not Path(name).exists()]
    if absent:
        raise ValueError(f"no {absent[0]} in {Path.cwd()}: run this in the"
                         " folder of the book")
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}; choose another") from None


def main(argv: list[str]) -> int:
    """Serve the site; rebuild and reload it at every change."""
    parser = argparse.ArgumentParser(
        prog="python -m companion serve", description=main.__doc__)
    parser.add_argument("--port", type=int, default=8000)
    try:
        taken = listen(parser.parse_args(argv).port)
    except ValueError as error:
        parser.error(str(error))
    address = "{}:{}".format(*taken.getsockname())
    with taken, suppress(KeyboardInterrupt):
        if make_book():
            make_ready()
        print(f"http://{address}/  (Ctrl+C ends)", flush=True)
        site = uvicorn.Config(application(address), log_level="warning")
        uvicorn.Server(site).run(sockets=[taken])
    return 0
