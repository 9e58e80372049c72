"""The demo's corpus: Python's own standard library, read at run time. `read_stdlib` makes it, `stdlib_digest` names it."""

from data_contracts.stdlib.corpus import StdlibCorpus, read_stdlib
from data_contracts.stdlib.modules import stdlib_digest

__all__ = ["StdlibCorpus", "read_stdlib", "stdlib_digest"]
