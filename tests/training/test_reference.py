"""The reference's scores on disk: read as they were written, or not at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from training.batches import PackedRows
from training.processes import Processes
from training.reference import KeptScores

ALONE = Processes(0, 1, torch.device("cpu"))


def test_no_damaged_piece_is_believed(packed_rows: Callable[[str], PackedRows], tmp_path: Path) -> None:
    data, kept = packed_rows("dpo"), KeptScores(tmp_path, "a run", ALONE)
    scores = {row: np.arange(data.segments_per_row, dtype=np.float32) + row for row in (7, 2, 5)}
    kept.add(data, scores)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    found = kept.load(data)
    assert {row: numbers.tolist() for row, numbers in found.items()} == {r: n.tolist() for r, n in scores.items()}
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not kept.load(data), place
        path.write_bytes(whole[:place])
        assert not kept.load(data), place
    path.write_bytes(whole)
    assert not KeptScores(tmp_path, "another run", ALONE).load(data)
    assert not path.exists()
