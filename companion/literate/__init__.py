# Tangled from tangle: edit there, `make tangle`. sha256:c6b2504e8d2c
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, test

__all__ = ["claim", "extend", "glue", "test"]
