"""Two data versions side by side: every figure as a pair [A, B], A being the older one."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_contracts.compare import RowChanges, compare_lengths, compare_rows, compare_shares, compare_vocabularies
from data_contracts.config import KINDS, RowKind
from data_contracts.profile import Profile, digest_id, kept_rows, packed_figures, profile_version
from data_contracts.split import PARTS
from lineage.files import list_files, sha256_file
from lineage.stage import NOT_OUTPUTS

TOKENIZER = "tokenizer/tokenizer.json"


def diff_versions(a: Path, b: Path) -> dict[str, Any]:
    """Compares two folders of the data stage's outputs.

    Returns:
        `identical`: whether every file is the same; and the figures of each kind of rows (`compare_kind`), of the rules, of
        the contracts, and of the golden sets.

    Raises:
        BadInput: a folder holds no data version.
    """
    profiles_a, profiles_b = profile_version(a, deeply=True), profile_version(b, deeply=True)
    funnels = _read_json(a / "funnel.json"), _read_json(b / "funnel.json")
    hashes_a, hashes_b = _hash_outputs(a), _hash_outputs(b)
    kinds = {}
    for kind in KINDS:
        counts = [funnel["kinds"].get(kind, {}) for funnel in funnels]
        if any(count.get("rows_in") for count in counts):
            pair = profiles_a.get(kind, Profile()), profiles_b.get(kind, Profile())
            kinds[kind] = {"funnel": _pairs(counts), **compare_kind(kind, (a, b), pair)}
    return {
        "identical": hashes_a == hashes_b,
        "kinds": kinds,
        "rules": _pairs([funnel["rules"] for funnel in funnels]),
        "contracts": _contracts(a, b),
        "golden": _golden(a, b),
        "same_tokenizer": hashes_a.get(TOKENIZER) == hashes_b.get(TOKENIZER),
    }


def _hash_outputs(folder: Path) -> dict[str, str]:
    paths = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    return {name: sha256_file(path) for name, path in paths.items() if name not in NOT_OUTPUTS}


def compare_kind(kind: RowKind, folders: tuple[Path, Path], profiles: tuple[Profile, Profile]) -> dict[str, Any]:
    """Returns the figures of one kind of rows: rows, tokens, lengths, sources and vocabulary."""
    a, b = profiles
    changes = compare_rows(a, b)
    packed = [packed_figures(folder, kind, "train") for folder in folders]
    return {
        "rows": {name: value for name, value in vars(changes).items() if name != "samples"},
        "samples": _name_samples(changes, kind, folders),
        "tokens": _pairs([{name: figures[name] for name in figures if name.endswith("tokens")} for figures in packed]),
        "lengths": {
            "characters": [a.characters, b.characters],
            "median": [a.length_at(0.5), b.length_at(0.5)],
            "percentile_95": [a.length_at(0.95), b.length_at(0.95)],
            "longest": [a.length_at(1), b.length_at(1)],
            **compare_lengths(a.lengths, b.lengths),
            "quantiles": [_quantiles(a), _quantiles(b)],
        },
        "sources": compare_shares(a.sources, b.sources),
        "vocabulary": compare_vocabularies(a.vocabulary, b.vocabulary),
    }


def _quantiles(profile: Profile, points: int = 100) -> list[int]:
    """The lengths that 1 %, 2 %, … 100 % of the rows do not exceed; empty where there are none."""
    return [profile.length_at(i / points) for i in range(1, points + 1)] if profile.lengths else []


def _name_samples(changes: RowChanges, kind: RowKind, folders: tuple[Path, Path]) -> dict[str, list[str]]:
    """Reads the ids of the sampled rows; what was removed is in A, all else in B."""
    return {
        name: _find_ids(folders[0] if name == "removed" else folders[1], kind, set(wanted)) if wanted else []
        for name, wanted in changes.samples.items()
    }


def _find_ids(folder: Path, kind: RowKind, wanted: set[int]) -> list[str]:
    found = []
    for part in PARTS:
        for row in kept_rows(folder, kind, part):
            if digest_id(row.id) in wanted:
                found.append(row.id)
                if len(found) == len(wanted):
                    return sorted(found)
    return sorted(found)


def _contracts(a: Path, b: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows that each rule checked and that broke it, by kind; versions from before these were counted have none."""
    outcomes = [_read_json(folder / "contracts.json") for folder in (a, b)]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in _keys(outcomes):
        rules = [outcome.get(kind, {}) for outcome in outcomes]
        found[kind] = {rule: _pairs([by_rule.get(rule, {}) for by_rule in rules]) for rule in _keys(rules)}
    return found


def _golden(a: Path, b: Path) -> dict[str, dict[str, Any]]:
    sets = [_read_json(folder / "golden" / "manifest.json").get("sets", {}) for folder in (a, b)]
    return {
        name: {
            "items": [golden.get(name, {}).get("items", 0) for golden in sets],
            "same": sets[0].get(name, {}).get("sha256") == sets[1].get(name, {}).get("sha256"),
        }
        for name in _keys(sets)
    }


def _pairs(sides: list[dict[str, int]]) -> dict[str, list[int]]:
    return {name: [side.get(name, 0) for side in sides] for name in _keys(sides)}


def _keys(sides: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for side in sides for name in side))


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value
