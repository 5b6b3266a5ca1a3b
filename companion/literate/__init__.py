# Tangled from tangle: edit there, `make tangle`. sha256:524b73ece819
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3031
__all__ = ["claim", "extend", "glue", "test"]
