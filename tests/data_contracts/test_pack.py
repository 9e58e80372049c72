"""Packing: first-fit against a plain oracle, and rows whose tokens, labels, positions and segments say the same thing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_corpus import chat, conversations, documents
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_contracts.encode import Piece, Segment, encode_rows
from data_contracts.pack import IGNORED, Tensors, arrange, assign_rows, fill_rows, mismatch, write_packed
from data_contracts.rows import Conversation, Document, Preference
from data_contracts.tokenizer import BEGIN, END, save_tokenizer, train_tokenizer

TRICKY = "  def f(x):\n\treturn 'ü' + \"日本\"  # \U0001f600 <|end|>\n\n\n"


@pytest.fixture(scope="module")
def small_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 400 tokens."""
    return train_tokenizer([row["text"] for row in documents()], 400)


def document(text: str) -> Document:
    return Document(id="d", text=text, source="t")


def conversation(*turns: str) -> Conversation:
    messages = [message for i in range(0, len(turns), 2) for message in chat(turns[i], turns[i + 1])]
    return Conversation.model_validate({"id": "c", "messages": messages, "source": "t"})


def pack(pieces: list[Piece], seq_len: int, pad_token: int) -> Tensors:
    return fill_rows(arrange(pieces, seq_len), seq_len, pad_token)


def naive_first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for position, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[i] for i in row) + length <= capacity:
                row.append(position)
                break
        else:
            rows.append([position])
    return rows


@given(st.lists(st.integers(1, 16), max_size=80))
def test_first_fit_is_that_of_a_plain_loop(lengths: list[int]) -> None:
    assert assign_rows(lengths, 16) == naive_first_fit(lengths, 16)


def test_a_tokenizer_loads_as_it_was_saved_and_loses_no_text(
    small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_tokenizer(small_tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (loaded.bos_token, loaded.eos_token, len(loaded)) == (BEGIN, END, 400)
    ids = loaded("plain text").input_ids
    assert not set(ids) & set(loaded.all_special_ids)
    assert loaded.decode(loaded(TRICKY).input_ids) == TRICKY
    assert loaded.chat_template == small_tokenizer.chat_template


def test_the_template_knows_a_system_role_and_refuses_others(small_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rendered = small_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|begin|><|system|>S<|end|><|user|>U<|end|><|assistant|>"
    with pytest.raises(Exception, match="unknown role nobody"):
        small_tokenizer.apply_chat_template([{"role": "nobody", "content": "x"}], tokenize=False)


def test_labels_of_conversations_are_the_answers_with_their_end_tokens(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [conversation("What?", "this ü"), conversation("One?", "1", "Two?", "2")]
    encoded = encode_rows("sft", rows, small_tokenizer, 64)
    tensors = pack(encoded.pieces, 128, small_tokenizer.pad_token_id)
    learnt = tensors["labels"][tensors["labels"] != IGNORED]
    assert not encoded.left_out
    assert small_tokenizer.decode(learnt) == "this ü<|end|>1<|end|>2<|end|>"


def test_a_control_token_in_a_document_is_only_text(small_tokenizer: PreTrainedTokenizerFast) -> None:
    (piece,) = encode_rows("pretrain", [document("a <|end|> b")], small_tokenizer, 64).pieces
    tokens = piece.segments[0].tokens
    end = small_tokenizer.eos_token_id
    assert list(tokens).count(end) == 1
    assert tokens[-1] == end
    assert small_tokenizer.decode(tokens) == "<|begin|>a <|end|> b<|end|>"


def test_a_long_document_is_split_and_loses_no_token(small_tokenizer: PreTrainedTokenizerFast) -> None:
    text = documents()[0]["text"]
    encoded = encode_rows("pretrain", [document(text)], small_tokenizer, 16)
    assert not encoded.left_out
    assert len(encoded.pieces) > 2
    assert max(map(len, encoded.pieces)) == 16
    tokens = [token for piece in encoded.pieces for token in piece.segments[0].tokens]
    assert small_tokenizer.decode(tokens) == BEGIN + text + END


def test_a_long_conversation_is_named_and_left_out(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [conversation("What?", "this"), conversation("What?", "that " * 50)]
    encoded = encode_rows("sft", rows, small_tokenizer, 32)
    assert len(encoded.pieces) == 1
    assert list(encoded.left_out) == [1]
    assert encoded.left_out[1].rule == "too_long"


def test_pairs_stay_together_and_their_segments_are_numbered_two_by_two(small_tokenizer: PreTrainedTokenizerFast) -> None:
    question, history = chat("Where is it?", "x")[:1], chat("Hello?", "Yes.")
    rows = [
        Preference.model_validate(
            {
                "id": str(i),
                "prompt": history + question,
                "chosen": chat("", f"good {i}")[1:],
                "rejected": chat("", f"bad {i}")[1:],
                "source": "t",
            }
        )
        for i in range(9)
    ]
    encoded = encode_rows("preference", rows, small_tokenizer, 128)
    tensors = pack(encoded.pieces, 128, small_tokenizer.pad_token_id)
    assert not encoded.left_out
    assert len(tensors["input_ids"]) > 1
    answers = []
    for segments, labels in zip(tensors["segment_ids"], tensors["labels"], strict=True):
        assert (segments.max() + 1) % 2 == 0
        for number in range(segments.max() + 1):
            learnt = labels[(segments == number) & (labels != IGNORED)]
            answers.append((number % 2, small_tokenizer.decode(learnt)))
    expected = [(side, f"{word} {i}<|end|>") for i in range(9) for side, word in enumerate(("good", "bad"))]
    assert sorted(answers) == sorted(expected)


def test_every_segment_names_the_row_that_it_is_made_of(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [Document(id=f"dü:{i}", text=row["text"][:200], source="t") for i, row in enumerate(documents()[:4])]
    pieces = encode_rows("pretrain", rows, small_tokenizer, 24).pieces
    tensors = pack(pieces, 32, small_tokenizer.pad_token_id)
    names = json.loads(tensors["source_ids"].tobytes())
    found = [
        (names[number], tensors["input_ids"][row][tensors["segment_ids"][row] == segment].tolist())
        for row, numbers in enumerate(tensors["sources"])
        for segment, number in enumerate(numbers)
        if number >= 0
    ]
    assert sorted(found) == sorted((piece.source, list(piece.segments[0].tokens)) for piece in pieces)
    assert set(names) == {row.id for row in rows}


def test_packed_rows_hold_every_token_once_with_its_place(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [Conversation.model_validate(row | {"source": "t"}) for row in conversations()[:20]]
    pieces = encode_rows("sft", rows, small_tokenizer, 64).pieces
    tensors = pack(pieces, 64, small_tokenizer.pad_token_id)
    found = []
    for ids, labels, positions, segments in zip(
        *(tensors[n] for n in ("input_ids", "labels", "position_ids", "segment_ids")), strict=True
    ):
        real = segments >= 0
        assert (np.diff(segments[real]) >= 0).all()
        assert (labels[~real] == IGNORED).all()
        assert (positions[~real] == 0).all()
        assert (ids[~real] == small_tokenizer.pad_token_id).all()
        for number in range(segments.max() + 1):
            here = segments == number
            assert positions[here].tolist() == list(range(here.sum()))
            assert labels[here][0] == IGNORED
            assert ((labels[here] == IGNORED) | (labels[here] == ids[here])).all()
            found.append(tuple(ids[here]))
    assert sorted(found) == sorted(tuple(piece.segments[0].tokens) for piece in pieces)


def test_no_rows_pack_into_empty_tensors() -> None:
    assert pack([], 32, 0)["input_ids"].shape == (0, 32)


def test_packed_files_are_safetensors_with_sorted_metadata(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    figures = write_packed(path, "sft", pack([Piece((Segment([5, 6, 7], [False, True, True]),))], 8, 0), num_documents=1)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        assert file.get_tensor("input_ids").tolist() == [[5, 6, 7, 0, 0, 0, 0, 0]]
        assert file.get_tensor("labels").tolist() == [[-100, 6, 7, -100, -100, -100, -100, -100]]
    assert figures == {"documents": 1, "tokens": 3, "target_tokens": 2}
    assert metadata == {"kind": "sft", "seq_len": "8", "documents": "1", "tokens": "3", "target_tokens": "2"}
    header = path.read_bytes()[8:200]
    assert header.index(b"documents") < header.index(b"kind") < header.index(b"seq_len") < header.index(b"target_tokens")


def judged(number: int, prompt: int, answer: int) -> Piece:
    """A piece whose tokens say which prompt and which answer they belong to."""
    tokens = [100 + number] * prompt + [200 + number] * answer
    return Piece((Segment(tokens, [False] * prompt + [True] * answer),), desirable=number % 2 == 0)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 10)), min_size=1, max_size=30))
def test_mismatched_rows_have_the_same_prompts_and_the_answers_of_others(lengths: list[tuple[int, int]]) -> None:
    rows = arrange([judged(number, *length) for number, length in enumerate(lengths)], 16)
    other = mismatch(rows, 16)
    assert len(other) == len(rows)
    for row, swapped in zip(rows, other, strict=True):
        if len(lengths) == 1:
            assert not swapped  # nobody else's answer is there
            continue
        prompts, answers = ([{t for t in p.segments[0].tokens if t // 100 == k} for p in swapped] for k in (1, 2))
        assert prompts == [{t for t in p.segments[0].tokens if t < 200} for p in row]
        assert all(min(a) - 100 != min(p) for p, a in zip(prompts, answers, strict=True))
        assert sum(map(len, swapped)) <= 16
        assert all(any(p.segments[0].targets[1:]) for p in swapped)
        if len(row) > 1:
            assert sum(map(len, swapped)) == sum(map(len, row))
            assert sorted(map(min, answers)) == sorted(p.segments[0].tokens[-1] for p in row)


def test_weights_and_judgements_are_written_by_segment() -> None:
    pair = tuple(Segment([1, 2], [False, True]) for _ in range(2))
    tensors = pack([Piece(pair, weight=0.5), Piece(pair)], 8, 0)
    assert tensors["weights"].tolist() == [[0.5, 0.5, 1, 1]]
    assert "weights" not in pack([Piece(pair)], 8, 0)
    tensors = pack([judged(0, 1, 1), judged(1, 1, 1), judged(2, 1, 5)], 6, 0)
    assert tensors["desirable"].tolist() == [[1, 0], [1, 0]]  # filled up with 0
