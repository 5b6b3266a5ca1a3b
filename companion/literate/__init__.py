# Tangled from tangle: edit there, `make tangle`. sha256:317879f9dcaf
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2960
__all__ = ["extend", "glue", "test"]
