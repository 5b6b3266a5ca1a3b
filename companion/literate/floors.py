# Tangled from tangle: edit there, `make tangle`. sha256:73b7644bfa8b
"""The floors of the house: who may import whom."""

from companion.literate.source import SourceError

# chapters/appendix/tangle.md:1342
FLOORS = (
    "dtype ops view buffer",
    "kernels native blas device timing",
    "autograd tensor",
    "activations layers losses optim training data milestones",
    "cuda gpu",
    "convolution tokenizer embedding sequence attention transformer",
    "compiler",
    "profile cache quantize compress accelerate distributed benchmark",
)

BESIDE = "literate __init__ __main__"


# chapters/appendix/tangle.md:1360
def room(file: str) -> str:
    """`view` for companion/view.py, `kernels` for what is in there."""
    return file.split("/")[1].removesuffix(".py")


# chapters/appendix/tangle.md:1365
def beside(file: str) -> bool:
    """Whether a file is one of the tools beside the house."""
    return room(file) in BESIDE.split()


# chapters/appendix/tangle.md:1370
def floor(file: str) -> int | None:
    """The floor a file stands on; None for what the table lacks."""
    for number, rooms in enumerate(FLOORS):
        if room(file) in rooms.split():
            return number
    return None


# chapters/appendix/tangle.md:2040
def check_floors(modules, links) -> None:
    """Every module stands on a floor and imports only downwards."""
    for module in modules:
        if floor(module.file) is None and not beside(module.file):
            message = "stands on no floor: name it in FLOORS"
            path, line = module.body[0].place()
            raise SourceError(path, line, f"{module.file} {message}")
    for file, other, blame in links:
        if not may_import(file, other):
            raise blame(
                f"{file} stands {height(file)} and cannot import {other}, "
                f"{height(other)}: move one of the two")


# chapters/appendix/tangle.md:2054
def may_import(file: str, other: str) -> bool:
    """Whether an import leads downwards, or stays among the tools."""
    if beside(other):
        return True
    return not beside(file) and (floor(file) or 0) >= (floor(other) or 0)


# chapters/appendix/tangle.md:2061
def height(file: str) -> str:
    """Where a file stands, in words."""
    return "beside the house" if beside(file) else f"on floor {floor(file)}"


# chapters/appendix/tangle.md:2078
def check_cycles(links) -> None:
    """No module imports itself by way of others."""
    graph: dict[str, dict] = {}
    for file, other, blame in links:
        graph.setdefault(file, {}).setdefault(other, blame)
    done: set[str] = set()
    for file in graph:
        walk(file, (), graph, done)


# chapters/appendix/tangle.md:2088
def walk(file, path, graph, done) -> None:
    """Follow the imports of a file that `path` led to."""
    if file in path:
        cycle = [*path[path.index(file) :], file]
        blame = graph[cycle[-2]][file]
        message = f"import cycle {' → '.join(cycle)}: move what both need"
        raise blame(f"{message} down")
    if file not in done:
        for other in graph.get(file, ()):
            walk(other, (*path, file), graph, done)
    done.add(file)
