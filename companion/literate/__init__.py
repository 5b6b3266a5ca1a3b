# Tangled from tangle: edit there, `make tangle`. sha256:6dd1ac3d6d56
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:2996
__all__ = ["claim", "extend", "glue", "test"]
