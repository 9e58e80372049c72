"""Looks a source through in one pass and bounded memory: rows, columns, lengths, what does not fit, what a recipe says."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from data_contracts.config import Source
from data_contracts.rows import golden_text
from data_contracts.sources.feeds import Feed, make_row
from data_contracts.sources.formats import read_records
from data_contracts.sources.listing import list_source, source_name
from data_contracts.sources.places import SourceFile
from data_contracts.sources.records import Fault, Record
from data_contracts.sources.suggest import recipe_source, suggest
from lineage.errors import BadInput

LOOKED_AT = 200  # records that the kind and the columns are guessed from
SAMPLES = 3
RESERVOIR = 10_000  # lengths that quantiles are taken from
REMEMBERED = 1_000_000  # rows among which repetitions are looked for
SHORT = 160  # characters of a text in a sample
BYTES_PER_TOKEN = 4  # of English, about, in a large vocabulary
TYPES = {str: "text", bool: "boolean", int: "number", float: "number", list: "list", dict: "object", type(None): "null"}


@dataclass
class Lengths:
    """Sum and extremes of all lengths, and a uniform sample of them (Vitter 1985, algorithm R) for quantiles."""

    count: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    sample: list[int] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, length: int) -> None:
        """Counts one length."""
        self.least = min(self.least, length) if self.count else length
        self.most = max(self.most, length)
        self.total += length
        self.count += 1
        if len(self.sample) < RESERVOIR:
            self.sample.append(length)
        elif (place := self.draw.randrange(self.count)) < RESERVOIR:
            self.sample[place] = length

    def summary(self) -> dict[str, float]:
        """Returns total, mean, least, median, 95th percentile and most."""
        ordered = sorted(self.sample)
        quantiles = {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("median", 0.5), ("p95", 0.95))}
        mean = round(self.total / self.count, 1)
        return {"total": self.total, "mean": mean, "least": self.least, **quantiles, "most": self.most}


@dataclass
class Profile:
    """What was seen of a source so far."""

    rows: int = 0
    columns: dict[str, Counter[str]] = field(default_factory=dict)
    characters: Lengths = field(default_factory=Lengths)
    tokens: Lengths = field(default_factory=Lengths)
    samples: list[Any] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    first_seen: dict[str, str] = field(default_factory=dict)

    def note(self, problem: str, where: str) -> None:
        """Counts a problem, and keeps where it was met first."""
        self.problems[problem] += 1
        self.first_seen.setdefault(problem, where)


def profile_source(
    source: Source, most: int | None = None, count_tokens: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Reads a source and returns what there is to say of it, as plain data.

    Args:
        most: rows to read; None reads all.
        count_tokens: of a text; None estimates from its bytes.

    Raises:
        BadInput: it cannot be read, or holds nothing.
    """
    files = list_source(source, "path")
    with_place = ((file, record) for file in files for record in read_records(source, file))
    head = list(islice(with_place, min(LOOKED_AT, most) if most else LOOKED_AT))
    if not head:
        raise BadInput(source.path, "", "holds no rows", "give a source with rows")
    records = [record for _, record in head if isinstance(record, Record)]
    kind, columns = suggest(records[0].value, _names(records)) if records else (None, {})
    source = source.model_copy(update={"columns": columns})
    feed = Feed(source, "", source_name(source), kind, files) if kind else None
    seen, profile = _Seen(), Profile()
    rest = islice(with_place, most - len(head)) if most else with_place
    for file, record in chain(head, rest):
        _look_at(file, record, feed, profile, seen, count_tokens)
    told = recipe_source(source, kind, columns)
    return {
        "source": source.path,
        "files": len(files),
        "rows": profile.rows,
        "all_read": most is None or profile.rows < most,
        "columns": [_describe(name, types, profile.rows) for name, types in profile.columns.items()],
        "kind": kind,
        "characters": profile.characters.summary() if profile.characters.count else None,
        "tokens": profile.tokens.summary() if profile.tokens.count else None,
        "tokens_are": "counted" if count_tokens else f"estimated at {BYTES_PER_TOKEN} bytes a token",
        "samples": profile.samples,
        "problems": _problems(profile, kind),
        "recipe": {"sources": [told]} | ({"on_bad_line": "quarantine"} if _has_bad_rows(profile) else {}),
    }


class _Seen:
    """Hashes of ids and of rows, as many as are remembered."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def before(self, what: str, text: str) -> bool:
        """Whether this was seen before; it is remembered while there is room."""
        key = hashlib.blake2b(f"{what} {text}".encode(errors="surrogatepass"), digest_size=8).digest()
        if key in self._hashes:
            return True
        if len(self._hashes) < 2 * REMEMBERED:
            self._hashes.add(key)
        return False


REPEATED_ID, REPEATED_ROW = "repeats the id of an earlier row", "repeats an earlier row"


def _look_at(
    file: SourceFile,
    record: Record | Fault,
    feed: Feed | None,
    profile: Profile,
    seen: _Seen,
    count_tokens: Callable[[str], int] | None,
) -> None:
    profile.rows += 1
    where = f"{file.name}, {record.place}"
    if isinstance(record, Fault):
        profile.note(record.problem, where)
        return
    for name, value in record.value.items():
        profile.columns.setdefault(name, Counter())[TYPES.get(type(value), type(value).__name__)] += 1
    if len(profile.samples) < SAMPLES:
        profile.samples.append(_shorten(record.value))
    if "id" in record.value and seen.before("id", str(record.value["id"])):
        profile.note(REPEATED_ID, where)
    text = Record(0, "", {name: value for name, value in record.value.items() if name != "id"}).text()
    if seen.before("row", text):
        profile.note(REPEATED_ROW, where)
    texts: Sequence[str] = [text]
    if feed is not None:
        try:
            row = make_row(feed, file, record, f"{file.name}:{record.number}")
        except BadInput as error:
            profile.note(f"{error.field.removeprefix(record.place).lstrip('.') or 'row'}: {error.problem}", where)
            return
        texts = [golden_text(row)] if feed.kind == "golden" else row.texts()  # type: ignore[arg-type, union-attr]
    profile.characters.add(sum(map(len, texts)))
    if count_tokens is not None:
        profile.tokens.add(sum(map(count_tokens, texts)))
    else:
        profile.tokens.add(sum(-(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN) for text in texts))


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.value))


def _describe(name: str, types: Counter[str], rows: int) -> dict[str, Any]:
    absent = rows - sum(types.values()) + types["null"]
    return {"name": name, "types": sorted(set(types) - {"null"}), "nulls": round(absent / rows, 4)}


def _has_bad_rows(profile: Profile) -> bool:
    return any(problem not in (REPEATED_ID, REPEATED_ROW) for problem in profile.problems)


def _problems(profile: Profile, kind: str | None) -> list[dict[str, Any]]:
    found = [
        {"problem": problem, "rows": number, "first": profile.first_seen[problem]}
        for problem, number in profile.problems.most_common(10)
    ]
    if kind is None:
        said = "the columns do not say what the rows are: fill in `rows:` and `columns:`"
        found.insert(0, {"problem": said, "rows": profile.rows, "first": ""})
    return found


def _shorten(value: Any, depth: int = 4) -> Any:
    if not depth:
        return "…"
    if isinstance(value, str):
        return value if len(value) <= SHORT else f"{value[:SHORT]} … ({len(value):,} characters)"
    if isinstance(value, dict):
        return {name: _shorten(part, depth - 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_shorten(part, depth - 1) for part in value[:4]] + ([f"… ({len(value)})"] if len(value) > 4 else [])
    return value if isinstance(value, (int, float, type(None))) else str(value)
