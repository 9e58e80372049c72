"""Turns rows into pieces: tokens, and which of them are learnt."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from data_contracts.config import LearntAnswers, OnTooLong, RowKind
from data_contracts.messages import Message, Tools
from data_contracts.quarantine import Reason
from data_contracts.rows import Completion, Conversation, Document, Example, Judged, Preference, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Marks = list[tuple[int, int]]  # start and end, in characters, of what the assistant wrote


class Refused(Exception):
    """A chat template does not render a conversation."""


@dataclass(frozen=True)
class Segment:
    """Tokens that attend to each other and to nothing else; `targets` says which of them carry a loss."""

    tokens: Sequence[int]
    targets: Sequence[bool]

    def cut(self, length: int) -> "Segment":
        """The first tokens."""
        return Segment(self.tokens[:length], self.targets[:length])


@dataclass(frozen=True)
class Piece:
    """What must share a packed row.

    Attributes:
        segments: one document or conversation, or the two answers of a pair.
        weight: how much its loss counts beside others.
        desirable: of a judged answer, whether it is a good one.
        source: the id of the row that it was made of.
    """

    segments: tuple[Segment, ...]
    weight: float = 1.0
    desirable: bool | None = None
    source: str = ""

    def __len__(self) -> int:
        """Tokens."""
        return sum(len(segment.tokens) for segment in self.segments)


@dataclass(frozen=True)
class Encoded:
    """Rows as pieces, in order.

    Attributes:
        rows: the position of the row that each piece is of.
        left_out: positions of rows that have no piece, with the reason.
        num_cut: rows whose end was cut off.
    """

    pieces: list[Piece]
    rows: list[int]
    left_out: dict[int, Reason]
    num_cut: int = 0


def encode_rows(
    kind: RowKind,
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerFast",
    seq_len: int,
    *,
    on_too_long: OnTooLong = "drop",
    learnt_answers: LearntAnswers = "all",
) -> Encoded:
    """Encodes rows of one kind. A document that is longer than `seq_len` tokens is divided.

    A row with answers is not: it is left out, or with `truncate` loses its end, and the answer then stops in the middle.
    """
    pieces: list[Piece] = []
    positions: list[int] = []
    left_out: dict[int, Reason] = {}
    num_cut = 0
    if kind == "pretrain":
        documents = [row for row in rows if isinstance(row, Document)]
        for position, parts in enumerate(divide_documents(documents, tokenizer, seq_len)):
            pieces += parts
            positions += [position] * len(parts)
        return Encoded(pieces, positions, left_out)
    examples = [row for row in rows if isinstance(row, Example)]
    for position, piece in enumerate(encode_examples(examples, tokenizer, learnt_answers)):
        fitted = fit(piece, seq_len) if isinstance(piece, Piece) and on_too_long == "truncate" else piece
        if isinstance(fitted, Reason):
            left_out[position] = fitted
        elif len(fitted) > seq_len:
            left_out[position] = Reason("too_long", f"{len(fitted)} tokens do not fit into a row of {seq_len}")
        elif not all(any(segment.targets[1:]) for segment in fitted.segments):
            cause = "the chat template marks nothing of" if fitted is piece else f"a row of {seq_len} has no room for"
            left_out[position] = Reason("no_target", f"{cause} its answer")
        else:
            num_cut += fitted is not piece
            pieces.append(fitted)
            positions.append(position)
    return Encoded(pieces, positions, left_out, num_cut)


def fit(piece: Piece, seq_len: int) -> Piece:
    """Cuts the ends of a piece off where it is longer than a row; of two segments, the longer one's first."""
    if len(piece) <= seq_len:
        return piece
    share = seq_len // len(piece.segments)
    spare = sum(max(0, share - len(segment.tokens)) for segment in piece.segments)
    return replace(piece, segments=tuple(segment.cut(share + spare) for segment in piece.segments))


def encode_documents(documents: Sequence[Document], tokenizer: "PreTrainedTokenizerFast", seq_len: int) -> list[Piece]:
    """Returns the pieces of all documents, in order (`divide_documents`)."""
    return [piece for pieces in divide_documents(documents, tokenizer, seq_len) for piece in pieces]


def divide_documents(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerFast", seq_len: int
) -> Iterator[list[Piece]]:
    """Yields a document's pieces, at least one: one that is longer than a row is split, each part a piece of its own.

    A control token in a text is encoded as the text that it is.
    """
    texts = _encode_plain([document.text for document in documents], tokenizer)
    for document, ids in zip(documents, texts, strict=True):
        tokens = [*_begin(tokenizer), *ids, tokenizer.eos_token_id]
        parts = [tokens[start : start + seq_len] for start in range(0, len(tokens), seq_len)]
        yield [Piece((Segment(part, [True] * len(part)),), source=document.id) for part in parts]


def encode_examples(
    rows: Sequence[Example], tokenizer: "PreTrainedTokenizerFast", learnt_answers: LearntAnswers
) -> list[Piece | Reason]:
    """Returns a piece per row, in order, or why the chat template refuses the row.

    Learnt are the assistant's tokens, end tokens included: of a conversation those of all its answers or of the last, of
    other rows those of the completion, or of the chosen and of the rejected answer.
    """
    asked = [_answers_of(row, learnt_answers) for row in rows]
    segments = iter(_encode_answers([answer for answers in asked for answer in answers], tokenizer))
    pieces: list[Piece | Reason] = []
    for row, answers in zip(rows, asked, strict=True):
        found = [next(segments) for _ in answers]
        refused = [segment for segment in found if isinstance(segment, Reason)]
        learnt = tuple(segment for segment in found if isinstance(segment, Segment))
        desirable = row.label if isinstance(row, Judged) else None
        pieces.append(refused[0] if refused else Piece(learnt, row.weight or 1.0, desirable, row.id))
    return pieces


@dataclass(frozen=True)
class _Answer:
    """What a segment is made of: a plain prompt and its completion, or messages of which the last answers are learnt."""

    prompt: str = ""
    completion: str = ""
    messages: Sequence[Message] = ()
    num_learnt: int = 0
    tools: Tools | None = None


def _answers_of(row: Example, learnt_answers: LearntAnswers) -> list[_Answer]:
    match row:
        case Conversation():
            turns = sum(message.role == "assistant" for message in row.messages)
            number = turns if learnt_answers == "all" else 1
            return [_Answer(messages=row.messages, num_learnt=number, tools=row.tools)]
        case Completion() | Judged():
            return [_answer(row, row.prompt, row.completion)]
        case Preference():
            return [_answer(row, row.prompt, answer) for answer in (row.chosen, row.rejected)]
    raise TypeError(f"{type(row).__name__} has no answers")


def _answer(row: Example, prompt: str | list[Message], answer: str | list[Message]) -> _Answer:
    if isinstance(prompt, str) or isinstance(answer, str):
        return _Answer(prompt=str(prompt), completion=str(answer))
    number = sum(message.role == "assistant" for message in answer)
    return _Answer(messages=[*prompt, *answer], num_learnt=number, tools=row.tools)


def _encode_answers(answers: Sequence[_Answer], tokenizer: "PreTrainedTokenizerFast") -> list[Segment | Reason]:
    """Encodes answers, a run of one form at a time."""
    result: list[Segment | Reason] = []
    for is_chat, run in groupby(answers, key=lambda answer: bool(answer.messages)):
        if is_chat:
            result += encode_chats([(answer.messages, answer.tools, answer.num_learnt) for answer in run], tokenizer)
        else:
            result += encode_completions([(answer.prompt, answer.completion) for answer in run], tokenizer)
    return result


def encode_completions(rows: Sequence[tuple[str, str]], tokenizer: "PreTrainedTokenizerFast") -> list[Segment]:
    """Encodes plain prompts with their completions, which are learnt, end token included.

    The two are encoded as one text, and the completion begins where its tokens part from those of the prompt alone: a token
    may reach over the place where they meet.
    """
    begin, end = _begin(tokenizer), tokenizer.eos_token_id
    wholes = _encode_plain([prompt + completion for prompt, completion in rows], tokenizer)
    prompts = _encode_plain([prompt for prompt, _ in rows], tokenizer)
    segments = []
    for whole, prompt in zip(wholes, prompts, strict=True):
        read = len(begin) + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, prompt, strict=False)))
        tokens = [*begin, *whole, end]
        segments.append(Segment(tokens, [position >= read for position in range(len(tokens))]))
    return segments


def encode_chats(
    chats: Sequence[tuple[Sequence[Message], Tools | None, int]], tokenizer: "PreTrainedTokenizerFast"
) -> list[Segment | Reason]:
    """Writes conversations with the chat template; what its generation marks enclose is learnt, to the token.

    Args:
        chats: messages, tools, and how many of the answers are learnt: that many from the end.

    Returns:
        A segment each, or why the template refuses the conversation.
    """
    rendered: list[tuple[str, Marks] | Reason] = []
    for messages, tools, num_learnt in chats:
        try:
            text, marks = render_chat([message.model_dump() for message in messages], tools, tokenizer)
            rendered.append((text, marks[-num_learnt:]))
        except Refused as error:
            rendered.append(Reason("template", f"the chat template refuses it: {error}"))
    texts = [entry[0] for entry in rendered if not isinstance(entry, Reason)]
    encodings = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    return [entry if isinstance(entry, Reason) else _mark(next(encodings), entry[1]) for entry in rendered]


def render_chat(
    messages: Sequence[dict[str, Any]], tools: Tools | None, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[str, Marks]:
    """Returns a conversation as text, and where in it the assistant speaks: a mark per turn.

    Raises:
        Refused: with what the template says.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), (blocks,) = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=tokenizer.get_chat_template(tools=tools),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise Refused(str(error)) from None
    marks: Marks = []
    for start, end in blocks:
        if marks and marks[-1][1] == start:  # words and calls of one turn, each in a `{% generation %}` block of its own
            marks[-1] = (marks[-1][0], end)
        elif start < end:
            marks.append((start, end))
    return text, marks


def _mark(encoding: Any, marks: Marks) -> Segment:
    """Takes the tokens that share a character with a mark as targets.

    transformers' own mask asks which token holds a mark's last character; where a tokenizer drops that one (white space,
    say) it marks everything up to the end of the conversation.
    """
    targets = [False] * len(encoding.ids)
    position = 0
    for start, end in marks:
        while position < len(targets) and encoding.offsets[position][1] <= start:
            position += 1
        while position < len(targets) and encoding.offsets[position][0] < end:
            targets[position] = True
            position += 1
    return Segment(encoding.ids, targets)


def _encode_plain(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> Iterable[list[int]]:
    """Encodes texts in which a control token is only text."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    backend.encode_special_tokens = False
    return [encoding.ids for encoding in encodings]


def _begin(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
