"""The data card: what a data version holds, where it came from and how to make it again, in Markdown.

It is read from what the stage wrote and was told. It names neither model, version, time nor machine, so that equal data has
an equal card, and with it an equal data version. Licences stand in a YAML header, as hubs of data sets read them.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_contracts.config import DataConfig, RowKind
from data_contracts.profile import Profile, packed_figures, profile_version
from data_contracts.quarantine import FILES
from data_contracts.split import PARTS
from lineage.files import sha256_file, write_atomic

CARD = "data_card.md"
MOST_SOURCES = 20  # rows of the table of sources; data sets name thousands of origins
TEMPLATES = "columns"  # a field of a source whose texts may look like paths
PERSONAL = ("pii", "phone_region")  # what the names of the fields about personal data begin with


def write_card(out: Path, config: DataConfig, inputs: Mapping[str, str]) -> None:
    """Writes `data_card.md` into a folder in which everything else of the stage is written.

    Args:
        inputs: a sha256 per thing that the stage read (`lineage.stage.StageRun.inputs`).
    """
    funnel = _read_json(out / "funnel.json")
    section = portable_section(config)
    profiles = profile_version(out)
    parts = [
        _header(config),
        "# Data card",
        _summary(funnel, profiles, out),
        "## Where it came from",
        _sources(section, inputs),
        "## What was kept",
        _funnel(funnel),
        "## Why rows were left out",
        _rules(funnel, inputs),
        "## Lengths and tokens",
        _lengths(profiles, out),
        "Lengths are in characters, all texts of a row together; learnt tokens are those that the loss counts.",
        "## Rows by source",
        _rows_by_source(profiles),
        "## Personal data and secrets",
        _personal(section, funnel),
        "## Golden sets, and the proof that they are not in the rows",
        _golden(out),
        "## Tokenizer",
        _tokenizer(section, inputs, out),
        "## How to make it again",
        _reproduce(section),
    ]
    write_atomic(out / CARD, "\n\n".join(part for part in parts if part) + "\n")


def portable_section(config: DataConfig) -> dict[str, Any]:
    """Returns the `data:` section with paths relative to the folder that all of them share: no machine's folders in it."""
    section = config.model_dump(mode="json")
    folders = [os.path.dirname(path) for path in _paths(section)]  # noqa: PTH120  (a pattern or a folder is no `Path` to open)
    root = os.path.commonpath(folders) if folders else ""
    portable: dict[str, Any] = _rewrite_paths(section, lambda path: os.path.relpath(path, root))
    return portable


def _paths(section: dict[str, Any]) -> list[str]:
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    _rewrite_paths(section, note)
    return found


def _rewrite_paths(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a value of the section with every path of this machine changed; templates of texts hold none."""
    if isinstance(value, dict):
        return {name: part if name == TEMPLATES else _rewrite_paths(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_rewrite_paths(part, change) for part in value]
    return change(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _header(config: DataConfig) -> str:
    licences = sorted({source.license for source in config.sources if source.license})
    return f"---\n{yaml.safe_dump({'license': licences}, sort_keys=False)}---" if licences else ""


def _summary(funnel: Mapping[str, Any], profiles: Mapping[RowKind, Profile], out: Path) -> str:
    tokens = sum(packed_figures(out, kind, "train").get("tokens", 0) for kind in profiles)
    rows_in = sum(counts["rows_in"] for counts in funnel["kinds"].values())
    kept = sum(counts["kept"] for counts in funnel["kinds"].values())
    return f"{kept:,} of {rows_in:,} rows were kept; {tokens:,} tokens to train on."


def _sources(section: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    rows = []
    for i, source in enumerate(section["sources"]):
        digests = [digest for name, digest in sorted(inputs.items()) if name.startswith(f"sources[{i}]")]
        what = source.get("path") or source.get("kind")
        rows.append([what, source.get("rows"), source.get("license") or "not said", " ".join(digests)])
    return _table(["source", "rows", "licence", "digest"], rows)


def _funnel(funnel: Mapping[str, Any]) -> str:
    columns = ["rows_in", "kept", *PARTS, *FILES]
    present = {kind: counts for kind, counts in funnel["kinds"].items() if counts["rows_in"]}
    rows = [[kind, *(counts[name] for name in columns)] for kind, counts in present.items()]
    law = f"In every line: rows in = kept + {' + '.join(FILES)}, and kept = {' + '.join(PARTS)}."
    return f"{_table(['kind', *(name.replace('_', ' ') for name in columns)], rows)}\n\n{law}"


def _rules(funnel: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    if not funnel["rules"]:
        return "None was."
    table = _table(["stage", "rule", "rows"], [[*name.split(".", 1), count] for name, count in funnel["rules"].items()])
    erasures = inputs.get("erasures")
    return f"{table}\n\nTombstones of erasure, as a whole: `{erasures}`." if erasures else table


def _lengths(profiles: Mapping[RowKind, Profile], out: Path) -> str:
    rows = []
    for kind, profile in profiles.items():
        lengths = [profile.length_at(share) for share in (0, 0.5, 0.95, 1)]
        packed = [packed_figures(out, kind, part) for part in PARTS]
        tokens = [f"{figures.get('tokens', 0):,} ({figures.get('target_tokens', 0):,} learnt)" for figures in packed]
        rows.append([kind, *lengths, *tokens])
    columns = ["kind", "shortest", "median", "95 %", "longest", *(f"tokens, {part}" for part in PARTS)]
    return _table(columns, rows)


def _rows_by_source(profiles: Mapping[RowKind, Profile]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for kind, profile in profiles.items():
        counts.update({(kind, source): rows for source, rows in profile.sources.items()})
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    table = _table(["kind", "source", "rows"], [[kind, source, rows] for (kind, source), rows in shown[:MOST_SOURCES]])
    left = len(shown) - MOST_SOURCES
    return f"{table}\n\nAnd {left:,} more sources with fewer rows." if left > 0 else table


def _personal(section: Mapping[str, Any], funnel: Mapping[str, Any]) -> str:
    policies = {name: value for name, value in section.items() if name.startswith(PERSONAL) and value not in ("", None)}
    lines = []
    for name, value in policies.items():
        by_class = value.items() if isinstance(value, dict) else ()
        lines += [f"- `{name}.{kind}`: {policy or 'as above'}" for kind, policy in by_class] or [f"- `{name}`: {value}"]
    found = {name: rows for name, rows in funnel["rules"].items() if name.startswith("personal_data.")}
    said = ", ".join(f"{rows:,} for {name.split('.', 1)[1]}" for name, rows in found.items())
    return "\n".join([*lines, f"- rows taken out: {said or 'none'}"])


def _golden(out: Path) -> str:
    manifest, proof = _read_json(out / "golden" / "manifest.json"), _read_json(out / "proof.json")
    if not manifest["sets"]:
        return "There are none."
    rows = [[name, entry["kind"], entry["items"], entry["sha256"]] for name, entry in sorted(manifest["sets"].items())]
    hits = ", ".join(f"{count} by {method}" for method, count in proof["intersections"].items())
    checked = sum(proof["rows_checked"].values())
    claim = f"{checked:,} final rows were compared with every golden item; found: {hits} (`proof.json`)."
    return f"{_table(['set', 'kind', 'items', 'sha256'], rows)}\n\n{claim}"


def _tokenizer(section: Mapping[str, Any], inputs: Mapping[str, str], out: Path) -> str:
    path = out / "tokenizer" / "tokenizer.json"
    tokenizer = _read_json(path)
    vocabulary = tokenizer.get("model", {}).get("vocab", ())
    added = {token["content"] for token in tokenizer.get("added_tokens", ())}
    known = {token if isinstance(token, str) else token[0] for token in vocabulary}  # Unigram lists pairs, BPE maps
    size = len(known | added)
    of_base, given = (any(name.startswith(f"{role}/") for name in inputs) for role in ("tokenizer", "data.tokenizer"))
    origin = "The base model's" if of_base else "A given one" if given else "Trained on the training rows"
    return f"{origin}: {size:,} tokens, packed rows of {section['seq_len']:,}; sha256 `{sha256_file(path)}`."


def _reproduce(section: Mapping[str, Any]) -> str:
    text = yaml.safe_dump({"data": _without_blanks(section)}, sort_keys=False, allow_unicode=True)
    return (
        "With the same code (its commit is in the stage's `record.json`), and sources of the same sha256 beside a recipe "
        f"that holds this section:\n\n```yaml\n{text}```\n\n`python -m data_contracts --config RECIPE --out FOLDER` writes "
        "the same bytes. What was erased since would be left out."
    )


def _without_blanks(value: Any) -> Any:
    """Leaves out what says nothing: an absent field means the same."""
    if isinstance(value, dict):
        kept = {name: _without_blanks(part) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part not in ("", None, [], {})}
    return [_without_blanks(part) for part in value] if isinstance(value, list) else value


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: object) -> str:
    """A value as it may stand in a table: names come from data, and must not end a cell or a line."""
    text = f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")
    return " ".join(text.replace("|", r"\|").split())


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
