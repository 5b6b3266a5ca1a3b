# Tangled from tangle: edit there, `make tangle`. sha256:f5c12f460f66
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2951
__all__ = ["extend", "glue", "test"]
