# Tangled from tangle: edit there, `make tangle`. sha256:1b9ea13e1f81
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2949
__all__ = ["extend", "glue", "test"]
