"""A source's epochs decide how often its training rows are packed, and nothing else."""

import json
from pathlib import Path

from safetensors import safe_open
from source_files import as_json_lines
from tiny_corpus import chat, read_lines, run_data, sentence

from data_contracts.encode import Encoded, Piece, Segment
from data_contracts.mixture import num_copies, repeat_pieces


def test_whole_epochs_are_exact_and_parts_are_a_share_that_the_seed_chooses() -> None:
    ids = [f"row:{i}" for i in range(2000)]
    assert {num_copies(3, name, 0) for name in ids} == {3}
    assert {num_copies(0.5, name, 0) for name in ids} == {0, 1}
    assert {num_copies(2.25, name, 0) for name in ids} == {2, 3}
    assert abs(sum(num_copies(0.5, name, 0) for name in ids) - 1000) < 100
    assert [num_copies(0.5, name, 0) for name in ids] != [num_copies(0.5, name, 1) for name in ids]
    more = [num_copies(0.75, name, 0) - num_copies(0.5, name, 0) for name in ids]
    assert set(more) == {0, 1}  # what a smaller share takes, a larger one takes too


def test_pieces_are_repeated_in_passes() -> None:
    pieces = [Piece((Segment([i], [True]),)) for i in range(4)]
    encoded = Encoded(pieces, [0, 0, 2, 3], {1: None})  # type: ignore[dict-item]
    taken = [piece.segments[0].tokens[0] for piece in repeat_pieces(encoded, [2, 1, 1, 0])]
    assert taken == [0, 1, 2, 0, 1]
    assert repeat_pieces(Encoded([], [], {}), []) == []


def test_the_funnel_adds_up_whatever_is_packed_how_often(tmp_path: Path) -> None:
    for name in ("often", "seldom"):
        rows = [{"messages": chat(sentence(f"{name} {i}", 6), sentence(f"{name} answer {i}", 6))} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_bytes(as_json_lines(rows))
    sources = [{"path": "often.jsonl", "epochs": 3}, {"path": "seldom.jsonl", "epochs": 0.5}]
    recipe = {"name": "n", "version": "1", "data": {"sources": sources, "vocab_size": 400, "seq_len": 128}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = run_data("--config", tmp_path / "recipe.json", "--out", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    counts = funnel["kinds"]["sft"]
    assert counts["rows_in"] == counts["kept"] == 80
    kept = read_lines(tmp_path / "out" / "rows" / "sft" / "train.jsonl")
    assert len(kept) == counts["train"] == 76
    expected = sum(num_copies(3 if row["source"] == "often" else 0.5, row["id"], 0) for row in kept)
    assert funnel["packed"] == {"sft": expected}
    with safe_open(str(tmp_path / "out" / "packed" / "sft" / "train.safetensors"), "np") as file:
        assert int(file.metadata()["documents"]) == expected
        segments = sum(len(set(row[row >= 0].tolist())) for row in file.get_tensor("segment_ids"))
    assert segments == expected

    recipe["data"]["sources"] = [{"path": "often.jsonl", "epochs": 1e-9}]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = run_data("--config", tmp_path / "recipe.json", "--out", tmp_path / "none", home=tmp_path / "home")
    assert (done.returncode, "leave no sft row to pack" in done.stderr) == (2, True), done.stderr
