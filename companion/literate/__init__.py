# Tangled from tangle: edit there, `make tangle`. sha256:a80f534a1654
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2956
__all__ = ["extend", "glue", "test"]
