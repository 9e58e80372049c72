"""Golden items never reach training: however they are spelt, wherever they stand."""

import json
from pathlib import Path

import pytest
from tiny_corpus import GOLDEN_QUESTION, chat, golden, sentence, write_lines

from data_contracts.config import KINDS
from data_contracts.decontaminate import find_contaminated, freeze_golden, index_golden, write_proof
from data_contracts.rows import Conversation, Document, GoldenItem, GoldenLine, Row
from lineage.errors import BadInput, GoldpathError

HELD_OUT_WORDS = sentence("held out", 50).split()


def sets() -> dict[str, list[GoldenItem]]:
    items = [GoldenLine.model_validate(item).root for item in golden()]
    short = GoldenLine.model_validate({"id": "s", "kind": "closed_book", "question": "Which module?", "answer": "m"}).root
    return {"closed_book": [items[0], short], "heldout": [items[1]]}


def text_row(text: str) -> Row:
    return Document(id="row", text=text, source="test")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GOLDEN_QUESTION, "phrase"),
        (f"hi there, {GOLDEN_QUESTION.upper()} thanks", "phrase"),
        ("Which *tool*\n\tbends “copper” lanterns - over the winter river", "phrase"),
        (" ".join(["new", "start", *HELD_OUT_WORDS[10:23], "new", "end"]), "ngram"),
        ("which module", "phrase"),
        ("Which tool bends copper lanterns over the summer river?", None),
        (" ".join(["new", "start", *HELD_OUT_WORDS[10:22], "new", "end"]), None),
        ("In which module is it?", None),
        ("", None),
    ],
)
def test_what_repeats_a_golden_item(text: str, rule: str | None) -> None:
    found = find_contaminated([text_row(text)], index_golden(sets()))
    assert (found[0].rule if found else None) == rule


def test_every_turn_of_a_conversation_is_looked_at() -> None:
    row = Conversation.model_validate({"id": "c", "messages": chat("Quiz me.", GOLDEN_QUESTION), "source": "t"})
    assert list(find_contaminated([row], index_golden(sets()))) == [0]


def test_a_golden_item_without_words_is_refused(tmp_path: Path) -> None:
    empty = GoldenLine.model_validate({"id": "e", "kind": "closed_book", "question": "?!", "answer": "m"}).root
    with pytest.raises(BadInput, match="has no words"):
        freeze_golden({"closed_book": [empty]}, tmp_path)


def test_the_proof_fails_where_a_golden_item_is_in_the_final_rows(tmp_path: Path) -> None:
    freeze_golden(sets(), tmp_path / "golden")
    for kind in KINDS:
        for part in ("train", "validation"):
            write_lines(tmp_path / "rows" / kind / f"{part}.jsonl", [])
    write_proof(tmp_path, sets())
    assert json.loads((tmp_path / "proof.json").read_text())["intersections"] == {"phrase": 0, "ngram": 0, "near": 0}

    (tmp_path / "proof.json").unlink()
    smuggled = {"id": "x", "messages": chat(f"Hey. {GOLDEN_QUESTION}", "yes"), "source": "t", "tags": []}
    write_lines(tmp_path / "rows" / "sft" / "validation.jsonl", [smuggled])
    with pytest.raises(GoldpathError, match="x repeats golden item closed_book/q1"):
        write_proof(tmp_path, sets())
    assert not (tmp_path / "proof.json").exists()
