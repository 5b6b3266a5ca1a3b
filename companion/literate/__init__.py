# Tangled from tangle: edit there, `make tangle`. sha256:876c5fbd5e5a
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2569
__all__ = ["extend", "glue", "test"]
