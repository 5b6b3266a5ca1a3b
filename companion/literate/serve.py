# Tangled from record: edit there, `make tangle`. sha256:f82230ae5c0d
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

# chapters/appendix/record.md:2226
SITE = Path("_build/html")
WATCHED = ("chapters", "site", "intro.md", "_config.yml", "_toc.yml")


# chapters/appendix/record.md:2230
def rebuild(changed_paths=()) -> None:
    """Build the book; what is wrong with it stands in the terminal."""
    for path in changed_paths:
        print("changed:", path)
    subprocess.run(["make", "book"], check=False)


# chapters/appendix/record.md:2237
def ignored(path: str) -> bool:
    """The record, and what editors and browsers leave behind."""
    name = Path(path).name
    return "notebooks" in Path(path).parts or name.startswith((".", "#"))


# chapters/appendix/record.md:2246
def application(address: str) -> Starlette:
    """The site as a web application that knows when to reload."""
    SITE.mkdir(parents=True, exist_ok=True)
    watcher = RebuildServer(WATCHED, ignored, change_callback=rebuild)
    routes = [WebSocketRoute("/websocket-reload", watcher),
              Mount("/", app=StaticFiles(directory=SITE, html=True))]
    reload = Middleware(JavascriptInjectorMiddleware, ws_url=address)
    return Starlette(routes=routes, middleware=[reload],
                     lifespan=watcher.lifespan)


# chapters/appendix/record.md:2257
def main(argv: list[str]) -> int:
    """Serve the site; rebuild and reload it at every change."""
    parser = argparse.ArgumentParser(
        prog="python -m companion serve", description=main.__doc__)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(argv)
    address = f"127.0.0.1:{options.port}"
    rebuild()
    print(f"http://{address}/  (Ctrl+C ends)")
    uvicorn.run(application(address), host="127.0.0.1", port=options.port,
                log_level="warning")
    return 0
