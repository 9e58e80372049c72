"""Encoding: what is learnt is what the assistant says, to the token, in every kind of row; and rows that are too long."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_corpus import chat, documents
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_contracts.config import RowKind
from data_contracts.encode import Encoded, Segment, encode_rows
from data_contracts.rows import row_model
from data_contracts.tokenizer import END, control_tokens, load_tokenizer, save_tokenizer, train_tokenizer
from lineage.errors import BadInput

TOOLS = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}]}
SAID = {"role": "tool", "name": "lamp", "content": "it is on"}
CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role + '\\n' }}\
{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 420 tokens that knows tools."""
    return train_tokenizer([row["text"] for row in documents()], 420, tools=True)


def encode(kind: RowKind, tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any], **policies: Any) -> Encoded:
    made = [row_model(kind, row).model_validate({"id": str(i), "source": "t", **row}) for i, row in enumerate(rows)]
    return encode_rows(kind, made, tokenizer, policies.pop("seq_len", 256), **policies)


def learnt(tokenizer: PreTrainedTokenizerFast, segment: Segment) -> str:
    return tokenizer.decode([token for token, bit in zip(segment.tokens, segment.targets, strict=True) if bit])


def read(tokenizer: PreTrainedTokenizerFast, segment: Segment) -> str:
    return tokenizer.decode(segment.tokens)


def test_every_answer_is_learnt_or_the_last_one_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"messages": [*chat("One?", "1"), *chat("Two?", "2")]}
    for policy, expected in (("all", "1<|end|>2<|end|>"), ("last", "2<|end|>")):
        (piece,) = encode("sft", tokenizer, row, learnt_answers=policy).pieces
        assert learnt(tokenizer, piece.segments[0]) == expected


def test_calls_are_learnt_and_what_tools_say_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"messages": [chat("Light!", "")[0], CALL, SAID, {"role": "assistant", "content": "Done."}], "tools": TOOLS}
    (piece,) = encode("sft", tokenizer, row).pieces
    call = '<|call|>{"name": "lamp", "arguments": {"on": true}}<|end|>'
    assert learnt(tokenizer, piece.segments[0]) == f"{call}Done.<|end|>"
    assert read(tokenizer, piece.segments[0]) == (
        f"<|begin|><|tools|>{json.dumps(TOOLS)}<|end|><|user|>Light!<|end|><|assistant|>{call}"
        "<|tool|>it is on<|end|><|assistant|>Done.<|end|>"
    )
    assert len([t for t in piece.segments[0].tokens if t == tokenizer.convert_tokens_to_ids("<|call|>")]) == 1


def test_a_plain_completion_is_learnt_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    (piece,) = encode("sft", tokenizer, {"prompt": "The sky is", "completion": " blue."}).pieces
    assert learnt(tokenizer, piece.segments[0]) == " blue.<|end|>"
    assert read(tokenizer, piece.segments[0]) == "<|begin|>The sky is blue.<|end|>"


def test_of_a_chat_completion_only_the_completion_is_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": [*chat("One?", "1"), chat("Two?", "")[0]], "completion": [CALL, SAID, *chat("", "2")[1:]]}
    (piece,) = encode("sft", tokenizer, row).pieces
    assert learnt(tokenizer, piece.segments[0]).startswith("<|call|>")
    assert learnt(tokenizer, piece.segments[0]).endswith("<|end|>2<|end|>")


@pytest.mark.parametrize("form", ["text", "messages"])
def test_pairs_and_judged_answers_come_as_text_and_as_messages(tokenizer: PreTrainedTokenizerFast, form: str) -> None:
    def turn(role: str, text: str) -> Any:
        return text if form == "text" else [{"role": role, "content": text}]

    prompt, good, bad = turn("user", "Grass is"), turn("assistant", " green"), turn("assistant", " blue")
    (pair,) = encode("preference", tokenizer, {"prompt": prompt, "chosen": good, "rejected": bad, "weight": 2}).pieces
    assert [learnt(tokenizer, segment) for segment in pair.segments] == [" green<|end|>", " blue<|end|>"]
    assert pair.weight == 2
    judged = encode("unpaired", tokenizer, *({"prompt": prompt, "completion": c, "label": c is good} for c in (good, bad)))
    assert [(learnt(tokenizer, p.segments[0]), p.desirable) for p in judged.pieces] == [
        (" green<|end|>", True),
        (" blue<|end|>", False),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=2, max_size=8))
def test_the_mask_covers_the_answers_and_their_end_tokens_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    turns = [text for text in texts if not any(token in text for token in tokenizer.all_special_tokens)]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if not pairs:
        return
    (piece,) = encode("sft", tokenizer, {"messages": [m for pair in pairs for m in chat(*pair)]}, seq_len=4096).pieces
    (segment,) = piece.segments
    assert learnt(tokenizer, segment) == "".join(answer + END for _, answer in pairs)
    assert sum(segment.targets) == sum(len(tokenizer(answer).input_ids) + 1 for _, answer in pairs)


def test_a_tokenizer_that_drops_white_space_marks_no_more_than_the_answer(tmp_path: Path) -> None:
    words = {"<|im_start|>": 0, "<|im_end|>": 1, "user": 2, "assistant": 3, "a": 4, "b": 5, "c": 6, "d": 7}
    backend = Tokenizer(models.WordLevel(words, unk_token="d"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = CHATML.replace("'<|im_end|>' }}{% endgen", "'<|im_end|>\\n' }}{% endgen")  # the marked text ends in a blank
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=template)
    (piece,) = encode("sft", spaced, {"messages": [*chat("a", "b"), *chat("c", "d")]}).pieces
    marked = [t for t, bit in zip(piece.segments[0].tokens, piece.segments[0].targets, strict=True) if bit]
    assert spaced.convert_ids_to_tokens(marked) == ["b", "<|im_end|>", "d", "<|im_end|>"]
    theirs = spaced.apply_chat_template(
        [*chat("a", "b"), *chat("c", "d")], return_dict=True, return_assistant_tokens_mask=True
    )
    assert sum(theirs["assistant_masks"]) > 4  # why the mask is not the library's


def test_rows_that_are_too_long(tokenizer: PreTrainedTokenizerFast) -> None:
    long, rows = "river " * 60, [{"messages": chat("What?", "this")}]
    rows += [{"messages": chat("What?", long)}, {"messages": chat(long, "that")}]
    dropped = encode("sft", tokenizer, *rows, seq_len=64)
    assert {position: reason.rule for position, reason in dropped.left_out.items()} == {1: "too_long", 2: "too_long"}
    cut = encode("sft", tokenizer, *rows, seq_len=64, on_too_long="truncate")
    assert {position: reason.rule for position, reason in cut.left_out.items()} == {2: "no_target"}
    assert (cut.num_cut, [len(piece) for piece in cut.pieces]) == (1, [len(dropped.pieces[0]), 64])
    assert not learnt(tokenizer, cut.pieces[1].segments[0]).endswith(END)


def test_of_a_pair_that_is_too_long_the_longer_answer_is_cut_first(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = {"prompt": "Where?", "chosen": " here", "rejected": " there" * 60}
    (piece,) = encode("preference", tokenizer, pair, seq_len=64, on_too_long="truncate").pieces
    assert learnt(tokenizer, piece.segments[0]) == " here<|end|>"
    assert len(piece) == 64
    pair = {"prompt": "Where?", "chosen": " here" * 60, "rejected": " there" * 60}
    (piece,) = encode("preference", tokenizer, pair, seq_len=64, on_too_long="truncate").pieces
    assert [len(segment.tokens) for segment in piece.segments] == [32, 32]


def test_a_row_that_the_template_refuses_is_named_and_the_others_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    strict = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    rows = [{"messages": [{"role": "system", "content": "Be brief."}, *chat("a", "b")]}, {"messages": chat("a", "b")}]
    encoded = encode("sft", strict, *rows)
    assert len(encoded.pieces) == 1
    assert (encoded.left_out[0].rule, encoded.left_out[0].text) == (
        "template",
        "the chat template refuses it: no system role",
    )


def test_a_given_tokenizer_must_mark_what_the_assistant_says(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    ours = load_tokenizer(tmp_path, None, needs_chat=True, needs_tools=True)
    assert control_tokens(ours) == sorted(tokenizer.all_special_tokens)
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("<|im_end|>", END))
    assert load_tokenizer(tmp_path, template, needs_chat=True).chat_template == template.read_text()
    assert not capsys.readouterr().err
    template.write_text("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}")  # fmt: skip
    load_tokenizer(tmp_path, template, needs_chat=True)
    assert "marks no end token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "has no {% generation %} marks"),
        ("{# generation #}{% for m in messages %}{{ m.content }}{% endfor %}", "has no {% generation %} marks"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "which is not what the"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endfor %}", "cannot be rendered"),
        ("{{ raise_exception('never') }}", "cannot be rendered (never)"),
        (CHATML, "never writes `tools`"),
    ],
)
def test_a_template_that_marks_something_else_is_refused_with_what_to_write(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, template: str, said: str
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load_tokenizer(tmp_path, None, needs_chat=False).eos_token == END
    with pytest.raises(BadInput) as caught:
        load_tokenizer(tmp_path, None, needs_chat=True, needs_tools=True)
    assert said in str(caught.value)
    if "marks" in said:
        assert "{% generation %}{{ message.content + eos_token }}{% endgeneration %}" in caught.value.fix


def test_a_tokenizer_without_template_or_with_a_torn_file_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="chat_template: is missing, so conversations"):
        load_tokenizer(tmp_path, None, needs_chat=True)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_tokenizer(tmp_path, None, needs_chat=False)
