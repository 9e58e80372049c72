"""Identity: the same for the same work, another for other work, refused for what cannot be compared."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineage.fingerprint import fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def shuffled(value: Any) -> Any:
    """The same value with every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_the_order_of_keys_does_not_matter(config: dict[str, Any]) -> None:
    assert fingerprint("data", config, {"a": "1"}) == fingerprint("data", shuffled(config), {"a": "1"})


@pytest.mark.parametrize(
    "other",
    [
        ("sft", {"seed": 1}, {"data/rows": "aa"}),
        ("data", {"seed": 2}, {"data/rows": "aa"}),
        ("data", {"seed": "1"}, {"data/rows": "aa"}),
        ("data", {"seed": 1}, {"data/rows": "ab"}),
        ("data", {"seed": 1}, {"data/row": "aa"}),
        ("data", {"seed": 1}, {}),
    ],
)
def test_anything_else_is_another_identity(other: tuple[str, dict[str, Any], dict[str, str]]) -> None:
    assert fingerprint("data", {"seed": 1}, {"data/rows": "aa"}) != fingerprint(*other)


def test_it_is_the_same_on_every_machine_and_day() -> None:
    known = "f68bfe34cea3f14325232ea69948531e24017e1fa7d1b9eb0d3e334b1826557d"
    assert fingerprint("data", {"seed": 1, "text": "é"}, {"a": "1"}) == known


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, object(), b"bytes"])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        fingerprint("data", {"key": value}, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_no_reader_agrees_on_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint("data", {"key": value}, {})
