# Tangled from tangle: edit there, `make tangle`. sha256:a9d9f0662993
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3001
__all__ = ["claim", "extend", "glue", "test"]
