"""Serve the built site; rebuild and reload it when a source changes."""

import argparse
import subprocess
from pathlib import Path

import uvicorn
from sphinx_autobuild.middleware import JavascriptInjectorMiddleware
from sphinx_autobuild.server import RebuildServer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles

SITE = Path("_build/html")
WATCHED = ("chapters", "site", "intro.md", "_config.yml", "_toc.yml")


def rebuild(changed_paths=()):
    """Build the book; what is wrong with it stands in the terminal."""
    for path in changed_paths:
        print("changed:", path)
    subprocess.run(["make", "book"], check=False)


def ignored(path):
    """The record, and what editors and browsers leave behind."""
    parts = Path(path).parts
    return "notebooks" in parts or Path(path).name.startswith((".", "#"))


def application(address):
    """The site as a web application that knows when to reload."""
    watcher = RebuildServer(WATCHED, ignored, change_callback=rebuild)
    SITE.mkdir(parents=True, exist_ok=True)
    files = StaticFiles(directory=SITE, html=True)
    return Starlette(
        routes=[
            WebSocketRoute("/websocket-reload", watcher),
            Mount("/", app=files),
        ],
        middleware=[Middleware(JavascriptInjectorMiddleware, ws_url=address)],
        lifespan=watcher.lifespan,
    )


def main(argv):
    """Build the site, serve it, and rebuild it at every change."""
    parser = argparse.ArgumentParser(
        prog="companion serve", description=main.__doc__
    )
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(argv)
    rebuild()
    address = f"127.0.0.1:{options.port}"
    print(f"http://{address}/  (Ctrl+C ends)")
    uvicorn.run(
        application(address),
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
    )
    return 0
