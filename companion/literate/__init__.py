"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import extend, glue, test

__all__ = ["extend", "glue", "test"]
