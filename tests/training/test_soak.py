"""A seeded sample of `make soak`."""

from pathlib import Path

import pytest
from soak import Soak


@pytest.mark.parametrize(("kinds", "seed"), [(("pretrain", "lora"), 1), (("dpo", "rewind"), 2)])
def test_kills_and_damage_leave_no_trace(tmp_path: Path, kinds: tuple[str, ...], seed: int) -> None:
    report = Soak(tmp_path, seed).run(6, kinds)
    assert report.clean, report
    assert report.kills >= 6
