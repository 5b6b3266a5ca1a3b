# Tangled from tangle: edit there, `make tangle`. sha256:64dbccaca21c
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3009
__all__ = ["claim", "extend", "glue", "test"]
