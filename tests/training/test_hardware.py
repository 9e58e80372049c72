"""bf16 only where the processor has instructions for it."""

from pathlib import Path

import pytest

from training import hardware
from training.hardware import quickest_precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", "bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", "fp32"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
        ("", "fp32"),
    ],
)
def test_a_cpu_computes_in_what_it_has_instructions_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert quickest_precision("cpu") == expected


def test_where_linux_does_not_tell_fp32_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "absent")
    assert quickest_precision("cpu") == "fp32"
