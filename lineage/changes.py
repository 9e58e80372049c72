"""What changed between the run that left work behind and the one that would continue it, and what of it is allowed."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

ABSENT = "absent"


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        field: a configuration's key such as `training.learning_rate`, or an input such as `data/tokenizer/tokenizer.json`.
        before, after: its values; for inputs their sha256, shortened; `ABSENT` where there is none.
    """

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before} → {self.after}"

    def allowed_by(self, names: Collection[str]) -> bool:
        """Whether one of the names is this field, or one of the sections or folders that it lies in."""
        return any(self.field == name or self.field.startswith((f"{name}.", f"{name}/")) for name in names)

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)


def find_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], inputs_before: Mapping[str, str], inputs_after: Mapping[str, str]
) -> list[Change]:
    """Returns what differs between two configurations and between the sha256 of what was read, by field."""
    flat, flat_after = dict(_flatten(before)), dict(_flatten(after))
    short = {name: digest[:12] for name, digest in inputs_before.items()}
    short_after = {name: digest[:12] for name, digest in inputs_after.items()}
    return [*_differences(flat, flat_after), *_differences(short, short_after)]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for field in sorted(before.keys() | after.keys()):
        old, new = before.get(field, ABSENT), after.get(field, ABSENT)
        if old != new:
            yield Change(field, old, new)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
