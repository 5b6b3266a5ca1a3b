# Tangled from tangle: edit there, then `make tangle`. sha256:9493a5d98f75
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

# chapters/appendix/tangle.md:2501
__all__ = ["extend", "glue", "test"]
