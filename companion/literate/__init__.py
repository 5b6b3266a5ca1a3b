# Tangled from tangle: edit there, `make tangle`. sha256:7841dd3e8e1c
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

# chapters/appendix/tangle.md:3010
__all__ = ["claim", "extend", "glue", "test"]
