# Tangled from tangle: edit there, `make tangle`. sha256:fc75d6002ec4
"""The tools that turn chapters into a library, notebooks and a site."""

from companion.literate.runtime import (
    claim, extend, glue, message, read_records, test)

__all__ = ["claim", "extend", "glue", "message", "read_records", "test"]
