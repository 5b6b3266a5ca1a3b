# Tangled from tangle: edit there, `make tangle`. sha256:95d98015672f
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2527
__all__ = ["extend", "glue", "test"]
