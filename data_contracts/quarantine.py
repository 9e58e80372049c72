"""Where rows go that are not kept, each with the stage, the rule and the reason, and the law that none gets lost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_contracts.config import KINDS, RowKind
from data_contracts.jsonl import write_jsonl
from data_contracts.rows import Row
from data_contracts.sources import BadLine
from data_contracts.split import PARTS, Part
from lineage.errors import GoldpathError
from lineage.files import write_json

Outcome = Literal["quarantined", "duplicates", "contaminated", "erased"]
FILES: dict[Outcome, str] = {
    "quarantined": "quarantine.jsonl",
    "duplicates": "duplicates.jsonl",
    "contaminated": "contaminated.jsonl",
    "erased": "erased.jsonl",
}


@dataclass(frozen=True)
class Reason:
    """Why a row is not kept: the rule's name, and a sentence for a person."""

    rule: str
    text: str


@dataclass
class Funnel:
    """Counts every row from the source to its end.

    Attributes:
        rows_in: rows that the sources hold, by kind.
        removed: what was taken out, by outcome, in the order of removal.
        truncated: rows that were kept without their end.
        packed: how many training rows were packed, where it is not every kept one once (`epochs` of a source).
    """

    rows_in: Counter[RowKind] = field(default_factory=Counter)
    removed: dict[Outcome, list[dict[str, Any]]] = field(default_factory=lambda: {outcome: [] for outcome in FILES})
    truncated: int = 0
    packed: dict[RowKind, int] = field(default_factory=dict)

    def enter(self, kind: RowKind, rows: int) -> None:
        """Counts rows that came out of the sources."""
        self.rows_in[kind] += rows

    def remove(self, outcome: Outcome, stage: str, rows: Sequence[Row], reasons: Mapping[int, Reason]) -> list[Row]:
        """Takes out the rows at the given positions, with their reasons, and returns the others in order."""
        for position in sorted(reasons):
            row = rows[position]
            self._note(outcome, row.id, row.source, row.kind, stage, reasons[position], row.model_dump(mode="json"))
        return [row for position, row in enumerate(rows) if position not in reasons]

    def erase(self, kind: RowKind, reason: Reason) -> None:
        """Counts a row or a line that a tombstone keeps out, and keeps nothing of it."""
        self.enter(kind, 1)
        self._note("erased", "", "", kind, "erase", reason, {})

    def remove_bad_line(self, line: BadLine) -> None:
        """Counts a line that is no row and puts it into quarantine."""
        self.enter(line.kind, 1)
        reason = Reason("bad_line", line.problem)
        self._note("quarantined", line.id, line.source, line.kind, "read", reason, {"line": line.text})

    def counts(self, final: Mapping[tuple[RowKind, Part], int]) -> dict[RowKind, dict[str, int]]:
        """Returns the funnel by kind, after checking the law: in = kept + quarantined + duplicates + contaminated + erased.

        Args:
            final: how many rows every part of every kind holds.

        Raises:
            GoldpathError: a row got lost or came twice: a defect of this stage, never of the data.
        """
        result: dict[RowKind, dict[str, int]] = {}
        for kind in KINDS:
            out: dict[str, int] = {
                outcome: sum(entry["kind"] == kind for entry in self.removed[outcome]) for outcome in FILES
            }
            split = {part: final[kind, part] for part in PARTS}
            kept = sum(split.values())
            if self.rows_in[kind] != kept + sum(out.values()):
                raise GoldpathError(
                    f"data: {self.rows_in[kind]} {kind} rows went in, but {kept} kept + {out} came out. "
                    "Fix: report this as a defect of Goldpath, with the configuration"
                )
            result[kind] = {
                "rows_in": self.rows_in[kind],
                "kept": kept,
                **out,
                **{str(part): n for part, n in split.items()},
            }
        return result

    def write(self, out: Path, counts: Mapping[RowKind, Mapping[str, int]]) -> None:
        """Writes the removed rows, a file per outcome, and `funnel.json`."""
        for outcome, name in FILES.items():
            write_jsonl(out / name, self.removed[outcome])
        rules = Counter(f"{entry['stage']}.{entry['rule']}" for entries in self.removed.values() for entry in entries)
        if self.truncated:
            rules["pack.truncated"] = self.truncated
        packed = {"packed": self.packed} if self.packed else {}
        write_json(out / "funnel.json", {"kinds": counts, "rules": dict(sorted(rules.items()))} | packed)

    def _note(
        self, outcome: Outcome, id_: str, source: str, kind: RowKind, stage: str, reason: Reason, row: dict[str, Any]
    ) -> None:
        entry = {"id": id_, "source": source, "kind": kind, "stage": stage, "rule": reason.rule, "reason": reason.text}
        if outcome == "erased":  # an id or a source may be what was to be erased
            self.removed[outcome].append({name: entry[name] for name in ("kind", "stage", "rule", "reason")})
        else:
            self.removed[outcome].append({**entry, "row": row})
