# Tangled from tangle: edit there, `make tangle`. sha256:ba806bd22d9f
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3013
__all__ = ["claim", "extend", "glue", "test"]
