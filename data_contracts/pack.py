"""Turns rows into packed token rows: several documents share a row, and none of them sees another."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_contracts.config import RowKind
from data_contracts.quarantine import Reason
from data_contracts.rows import Conversation, Document, Message, Preference, Row
from lineage.files import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # the label of a token that carries no loss (torch's cross_entropy skips it)
NO_SEGMENT = -1  # the segment of padding
Tensors = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Segment:
    """Tokens that attend to each other and to nothing else; `targets` says which of them carry a loss."""

    tokens: Sequence[int]
    targets: Sequence[bool]


Piece = list[Segment]  # what must share a row: one document or conversation, or the two answers of a pair


def encode_rows(
    kind: RowKind, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerFast", seq_len: int
) -> tuple[list[Piece], dict[int, Reason]]:
    """Returns the pieces of rows of one kind, and the positions of rows that do not fit into `seq_len` tokens.

    A long document is split. A conversation or a pair is not: half an answer teaches to stop in the middle.
    """
    if kind == "pretrain":
        return encode_documents([row for row in rows if isinstance(row, Document)], tokenizer, seq_len), {}
    if kind == "sft":
        pieces = encode_conversations([row for row in rows if isinstance(row, Conversation)], tokenizer)
    else:
        pieces = encode_preferences([row for row in rows if isinstance(row, Preference)], tokenizer)
    too_long = {
        position: Reason("too_long", f"{piece_length(piece)} tokens do not fit into a row of {seq_len}")
        for position, piece in enumerate(pieces)
        if piece_length(piece) > seq_len
    }
    return [piece for position, piece in enumerate(pieces) if position not in too_long], too_long


def encode_documents(documents: Sequence[Document], tokenizer: "PreTrainedTokenizerFast", seq_len: int) -> list[Piece]:
    """Returns at least one piece per document: one that is longer than a row is split, each part a piece of its own.

    A control token in a text is encoded as the text that it is.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    encodings = backend.encode_batch([document.text for document in documents], add_special_tokens=False)
    backend.encode_special_tokens = False
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    pieces: list[Piece] = []
    for encoding in encodings:
        tokens = [*begin, *encoding.ids, tokenizer.eos_token_id]
        parts = [tokens[start : start + seq_len] for start in range(0, len(tokens), seq_len)]
        pieces += [[Segment(part, [True] * len(part))] for part in parts]
    return pieces


def encode_conversations(rows: Sequence[Conversation], tokenizer: "PreTrainedTokenizerFast") -> list[Piece]:
    """Returns a piece per conversation, in order; its targets are the assistant's tokens, end tokens included."""
    return [[segment] for segment in encode_chats([row.messages for row in rows], tokenizer)]


def encode_preferences(rows: Sequence[Preference], tokenizer: "PreTrainedTokenizerFast") -> list[Piece]:
    """Returns a piece per pair, in order: the prompt with the chosen and with the rejected answer."""
    chosen = encode_chats([row.prompt + row.chosen for row in rows], tokenizer)
    rejected = encode_chats([row.prompt + row.rejected for row in rows], tokenizer)
    return [[_last_answer(better), _last_answer(worse)] for better, worse in zip(chosen, rejected, strict=True)]


def encode_chats(chats: Sequence[Sequence[Message]], tokenizer: "PreTrainedTokenizerFast") -> list[Segment]:
    """Renders conversations with the chat template; the template's generation marks are the targets."""
    if not chats:
        return []
    encoded = tokenizer.apply_chat_template(
        [[message.model_dump() for message in chat] for chat in chats],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    masks = encoded["assistant_masks"]
    return [Segment(ids, [bool(bit) for bit in mask]) for ids, mask in zip(encoded["input_ids"], masks, strict=True)]


def _last_answer(segment: Segment) -> Segment:
    """Keeps the loss on the last answer alone: a pair differs in nothing else."""
    last = len(segment.targets) - 1
    while last >= 0 and not segment.targets[last]:
        last -= 1
    first = last
    while first > 0 and segment.targets[first - 1]:
        first -= 1
    return Segment(segment.tokens, [first <= i <= last for i in range(len(segment.tokens))])


def piece_length(piece: Piece) -> int:
    """Tokens of a piece."""
    return sum(len(segment.tokens) for segment in piece)


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


def pack_pieces(pieces: Sequence[Piece], seq_len: int, pad_token: int) -> Tensors:
    """Packs pieces into tensors of shape (rows, seq_len), int32: input_ids, labels, position_ids, segment_ids.

    Labels are not shifted: `labels[t]` is `input_ids[t]` where token t is a target. The first token of a segment is never
    one, because nothing comes before it that could predict it.
    """
    rows = assign_rows([piece_length(piece) for piece in pieces], seq_len)
    shape = (len(rows), seq_len)
    tensors: Tensors = {
        "input_ids": np.full(shape, pad_token, dtype=np.int32),
        "labels": np.full(shape, IGNORED, dtype=np.int32),
        "position_ids": np.zeros(shape, dtype=np.int32),
        "segment_ids": np.full(shape, NO_SEGMENT, dtype=np.int32),
    }
    for row, positions in enumerate(rows):
        start = 0
        for number, segment in enumerate(segment for position in positions for segment in pieces[position]):
            here = (row, slice(start, start + len(segment.tokens)))
            tokens, targets = np.array(segment.tokens, dtype=np.int32), np.array(segment.targets)
            targets[0] = False
            tensors["input_ids"][here] = tokens
            tensors["labels"][here] = np.where(targets, tokens, IGNORED)
            tensors["position_ids"][here] = np.arange(len(tokens))
            tensors["segment_ids"][here] = number
            start += len(tokens)
    return tensors


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
