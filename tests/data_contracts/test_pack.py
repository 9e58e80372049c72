"""Packing: first-fit against a plain oracle, and rows whose tokens, labels, positions and segments say the same thing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_corpus import chat, conversations, documents
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_contracts.pack import IGNORED, Segment, assign_rows, encode_rows, pack_pieces, piece_length, write_packed
from data_contracts.rows import Conversation, Document, Preference
from data_contracts.tokenizer import BEGIN, END, control_tokens, load_tokenizer, save_tokenizer, train_tokenizer
from lineage.errors import BadInput

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
    with pytest.raises(Exception, match="unknown role tool"):
        small_tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_labels_of_conversations_are_the_answers_with_their_end_tokens(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [conversation("What?", "this ü"), conversation("One?", "1", "Two?", "2")]
    pieces, too_long = encode_rows("sft", rows, small_tokenizer, 64)
    tensors = pack_pieces(pieces, 128, small_tokenizer.pad_token_id)
    learnt = tensors["labels"][tensors["labels"] != IGNORED]
    assert not too_long
    assert small_tokenizer.decode(learnt) == "this ü<|end|>1<|end|>2<|end|>"


def test_a_control_token_in_a_document_is_only_text(small_tokenizer: PreTrainedTokenizerFast) -> None:
    pieces, _ = encode_rows("pretrain", [document("a <|end|> b")], small_tokenizer, 64)
    end = small_tokenizer.eos_token_id
    assert list(pieces[0][0].tokens).count(end) == 1
    assert pieces[0][0].tokens[-1] == end
    assert small_tokenizer.decode(pieces[0][0].tokens) == "<|begin|>a <|end|> b<|end|>"


def test_a_long_document_is_split_and_loses_no_token(small_tokenizer: PreTrainedTokenizerFast) -> None:
    text = documents()[0]["text"]
    pieces, too_long = encode_rows("pretrain", [document(text)], small_tokenizer, 16)
    assert not too_long
    assert len(pieces) > 2
    assert max(map(piece_length, pieces)) == 16
    assert small_tokenizer.decode([token for piece in pieces for token in piece[0].tokens]) == BEGIN + text + END


def test_a_long_conversation_is_named_and_left_out(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [conversation("What?", "this"), conversation("What?", "that " * 50)]
    pieces, too_long = encode_rows("sft", rows, small_tokenizer, 32)
    assert len(pieces) == 1
    assert list(too_long) == [1]
    assert too_long[1].rule == "too_long"


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
    pieces, too_long = encode_rows("preference", rows, small_tokenizer, 128)
    tensors = pack_pieces(pieces, 128, small_tokenizer.pad_token_id)
    assert not too_long
    assert len(tensors["input_ids"]) > 1
    answers = []
    for segments, labels in zip(tensors["segment_ids"], tensors["labels"], strict=True):
        assert (segments.max() + 1) % 2 == 0
        for number in range(segments.max() + 1):
            learnt = labels[(segments == number) & (labels != IGNORED)]
            answers.append((number % 2, small_tokenizer.decode(learnt)))
    expected = [(side, f"{word} {i}<|end|>") for i in range(9) for side, word in enumerate(("good", "bad"))]
    assert sorted(answers) == sorted(expected)


def test_packed_rows_hold_every_token_once_with_its_place(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [Conversation.model_validate(row | {"source": "t"}) for row in conversations()[:20]]
    pieces, _ = encode_rows("sft", rows, small_tokenizer, 64)
    tensors = pack_pieces(pieces, 64, small_tokenizer.pad_token_id)
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
    assert sorted(found) == sorted(tuple(piece[0].tokens) for piece in pieces)


def test_no_rows_pack_into_empty_tensors() -> None:
    assert pack_pieces([], 32, 0)["input_ids"].shape == (0, 32)


def test_packed_files_are_safetensors_with_sorted_metadata(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    figures = write_packed(path, "sft", pack_pieces([[Segment([5, 6, 7], [False, True, True])]], 8, 0), num_documents=1)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        assert file.get_tensor("input_ids").tolist() == [[5, 6, 7, 0, 0, 0, 0, 0]]
        assert file.get_tensor("labels").tolist() == [[-100, 6, 7, -100, -100, -100, -100, -100]]
    assert figures == {"documents": 1, "tokens": 3, "target_tokens": 2}
    assert metadata == {"kind": "sft", "seq_len": "8", "documents": "1", "tokens": "3", "target_tokens": "2"}
    header = path.read_bytes()[8:200]
    assert header.index(b"documents") < header.index(b"kind") < header.index(b"seq_len") < header.index(b"target_tokens")


def test_a_given_tokenizer_must_mark_what_the_assistant_wrote(
    small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_tokenizer(small_tokenizer, tmp_path)
    assert control_tokens(load_tokenizer(tmp_path, None, needs_chat=True)) == sorted(small_tokenizer.all_special_tokens)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert load_tokenizer(tmp_path, None, needs_chat=False).eos_token == END
    with pytest.raises(BadInput, match="generation"):
        load_tokenizer(tmp_path, None, needs_chat=True)
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert load_tokenizer(tmp_path, template, needs_chat=True).chat_template == template.read_text()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_tokenizer(tmp_path, None, needs_chat=False)
