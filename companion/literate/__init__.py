# Tangled from tangle: edit there, then `make tangle`. sha256:aaeb538c1c1d
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2438
__all__ = ["extend", "glue", "test"]
