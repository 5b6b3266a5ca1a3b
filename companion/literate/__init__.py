# Tangled from tangle: edit there, `make tangle`. sha256:de515da3ee36
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import claim, extend, glue, message, test

__all__ = ["claim", "extend", "glue", "message", "test"]
