# Tangled from tangle: edit there, `make tangle`. sha256:7fb085f0875d
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2642
__all__ = ["extend", "glue", "test"]
