# Tangled from tangle: edit there, `make tangle`. sha256:6a52cdd0c1ca
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2577
__all__ = ["extend", "glue", "test"]
