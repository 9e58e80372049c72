"""Where rows come from: files of every common form, folders, URLs and the hub, read in bounded memory.

`listing` finds a source's files, `places` hashes and opens them, `streams` unpacks, `formats` makes records of them,
`mapping` and `forms` bring records into the form of rows, `feeds` gives rows, `corpus` gathers them.
"""

from data_contracts.sources.corpus import Corpus, read_sources, source_digests
from data_contracts.sources.feeds import BadLine

__all__ = ["BadLine", "Corpus", "read_sources", "source_digests"]
