"""Puts pieces into packed rows: several documents share a row, and none of them sees another."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_contracts.config import RowKind
from data_contracts.encode import Piece, Segment
from lineage.files import write_atomic

IGNORED = -100  # the label of a token that carries no loss (torch's cross_entropy skips it)
NO_SEGMENT = -1  # the segment of padding
Tensors = dict[str, NDArray[Any]]


def assign_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns the packed rows as lists of piece positions, by first-fit: each piece goes to the first row with room for it.

    First-fit needs at most 1.7 times the rows of an optimal packing (Dósa and Sgall 2013, "First Fit bin packing: a tight
    analysis"). A binary tree of the largest room below each node finds the row in O(log n).
    """
    size = 1 << max(1, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * size)
    rows: list[list[int]] = []
    for position, length in enumerate(lengths):
        node = 1
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        if node - size == len(rows):
            rows.append([])
        rows[node - size].append(position)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def arrange(pieces: Sequence[Piece], seq_len: int) -> list[list[Piece]]:
    """Returns the pieces of each packed row."""
    return [[pieces[position] for position in row] for row in assign_rows([len(piece) for piece in pieces], seq_len)]


def mismatch(rows: Sequence[Sequence[Piece]], seq_len: int) -> list[list[Piece]]:
    """Returns the rows with every prompt followed by another prompt's answer, which KTO measures its zero point with.

    Answers move on by one place within their row, so a row keeps its length, and the mismatched answers of any rows are the
    matched ones of the same rows (Ethayarajh et al. 2024, section 4.1). A piece that has a row to itself gets the last
    answer of the row before, as much of it as fits.
    """
    result = []
    for number, row in enumerate(rows):
        donors = [row[-1], *row[:-1]] if len(row) > 1 else [rows[number - 1][-1]]
        swapped = [_with_answer_of(donor, piece) for piece, donor in zip(row, donors, strict=True) if donor is not piece]
        result.append(swapped if len(row) > 1 else [_first_tokens(piece, seq_len) for piece in swapped])
    return result


def _with_answer_of(donor: Piece, piece: Piece) -> Piece:
    (own,), (other,) = piece.segments, donor.segments
    prompt, start = own.targets.index(True), other.targets.index(True)
    tokens = [*own.tokens[:prompt], *other.tokens[start:]]
    return replace(piece, segments=(Segment(tokens, [False] * prompt + list(other.targets[start:])),))


def _first_tokens(piece: Piece, length: int) -> Piece:
    return replace(piece, segments=tuple(segment.cut(length) for segment in piece.segments))


def fill_rows(rows: Sequence[Sequence[Piece]], seq_len: int, pad_token: int) -> Tensors:
    """Writes packed rows as tensors of shape (rows, seq_len), int32: input_ids, labels, position_ids, segment_ids.

    Labels are not shifted: `labels[t]` is `input_ids[t]` where token t is a target. The first token of a segment is never
    one, because nothing comes before it that could predict it.

    Where pieces have weights or are judged there are also `weights`, float32, and `desirable`, int8, of shape
    (rows, most segments of a row).

    Where pieces know the row that they were made of there are also `sources`, int32, of that shape: which of the names in
    `source_ids`, uint8, a JSON list, each segment is of; -1 where there is no segment.
    """
    shape = (len(rows), seq_len)
    tensors: Tensors = {
        "input_ids": np.full(shape, pad_token, dtype=np.int32),
        "labels": np.full(shape, IGNORED, dtype=np.int32),
        "position_ids": np.zeros(shape, dtype=np.int32),
        "segment_ids": np.full(shape, NO_SEGMENT, dtype=np.int32),
    }
    for row, pieces in enumerate(rows):
        start = 0
        for number, segment in enumerate(segment for piece in pieces for segment in piece.segments):
            here = (row, slice(start, start + len(segment.tokens)))
            tokens, targets = np.array(segment.tokens, dtype=np.int32), np.array(segment.targets)
            targets[0] = False
            tensors["input_ids"][here] = tokens
            tensors["labels"][here] = np.where(targets, tokens, IGNORED)
            tensors["position_ids"][here] = np.arange(len(tokens))
            tensors["segment_ids"][here] = number
            start += len(tokens)
    if any(piece.weight != 1 for pieces in rows for piece in pieces):
        tensors["weights"] = _by_segment(rows, lambda piece: piece.weight, 1, np.float32)
    if any(piece.desirable is not None for pieces in rows for piece in pieces):
        tensors["desirable"] = _by_segment(rows, lambda piece: bool(piece.desirable), 0, np.int8)
    if rows and all(piece.source for pieces in rows for piece in pieces):
        numbers = {name: number for number, name in enumerate(dict.fromkeys(p.source for pieces in rows for p in pieces))}
        tensors["sources"] = _by_segment(rows, lambda piece: numbers[piece.source], -1, np.int32)
        names = json.dumps(list(numbers))
        tensors["source_ids"] = np.frombuffer(names.encode(), dtype=np.uint8)
    return tensors


def _by_segment(
    rows: Sequence[Sequence[Piece]], figure: Callable[[Piece], float], filler: int, dtype: type[np.number[Any]]
) -> NDArray[Any]:
    """Returns a figure of each segment's piece, (rows, most segments of a row)."""
    by_row = [[figure(piece) for piece in pieces for _ in piece.segments] for pieces in rows]
    table = np.full((len(rows), max(map(len, by_row))), filler, dtype=dtype)
    for row, figures in enumerate(by_row):
        table[row, : len(figures)] = figures
    return table


def write_packed(path: Path, kind: RowKind, tensors: Tensors, num_documents: int) -> dict[str, int]:
    """Writes tensors as safetensors and returns the figures of their metadata: documents, tokens, target_tokens.

    The library writes metadata in the order of a randomly seeded hash map, so equal data would give different bytes: its
    header is written again with sorted keys. The format is that header, its length before it, and the data behind it.
    """
    from safetensors.numpy import save

    figures = {
        "documents": num_documents,
        "tokens": int((tensors["segment_ids"] != NO_SEGMENT).sum()),
        "target_tokens": int((tensors["labels"] != IGNORED).sum()),
    }
    seq_len = tensors["input_ids"].shape[1]
    content = save(tensors, metadata={"kind": kind, "seq_len": str(seq_len), **{k: str(v) for k, v in figures.items()}})
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to 8 bytes
    write_atomic(path, struct.pack("<Q", len(header)) + header + content[8 + size :])
    return figures
