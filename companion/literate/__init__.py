# Tangled from tangle: edit there, `make tangle`. sha256:bc79b382cdb6
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3084
__all__ = ["claim", "extend", "glue", "test"]
