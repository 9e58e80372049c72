"""Rows that hold nobody's data and look as if: the standard library, GSM8K, and numbers of every other kind."""

import hashlib
import json
import random
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from data_contracts.stdlib.modules import library_root

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
_CHARACTERS = 2_000
# By this rule of its own, not a detector's, a part of the library names an author or a list, so that it is not clean.
_NAMES_SOMEBODY = re.compile(r"\w@\w+\S*\.[a-z]{2}")

_TEMPLATES = {
    "version": (
        "pip install numpy=={a}.{b}.{c}", "Version {a}.{b}.{c}.{d} fixes the crash.", "Requires >= {a}.{b}.{c}.{d}",
        "v{a}.{b}.{c}-rc.{d}",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.{b} Chrome/1{a}.0.{c}.{d} Safari/537.36",
        "openssl-{a}.{b}.{c}.{d}.tar.gz",
        "See section {a}.{b}.{c}.{d} of the manual.", "torch-{a}.{b}.{c}.{d}-cp311-linux_x86_64.whl",
    ),
    "date": (
        "The job of {day:%Y-%m-%d %H:%M:%S} is done, call it a day.", "{day:%Y-%m-%dT%H:%M:%S.%fZ} INFO ready",
        "Due {day:%d.%m.%Y}",
        "at {day:%m/%d/%Y %I:%M}", "backup-{day:%Y%m%d-%H%M}.tar", "run {day:%Y%m%d%H%M%S}",
        "Date: {day:%a, %d %b %Y %H:%M:%S} +0000",
        "from {day:%d-%m-%Y} to 31-12-2026", "mtime {epoch}", '{{"timestamp": {epoch}{n:03}}}',
    ),
    "hash": (
        "commit {sha:.40}", "sha256:{sha}", "fixed in {sha:.7}", 'ETag: "{sha:.32}"', "index {sha:.7}..{other:.7} 100644",
        "colour #{sha:.6}",
        "md5 = {sha:.32}", "id {uuid}", "urn:uuid:{uuid}", "blake2b {sha}{other}", "layer {sha:.12} pulled",
    ),
    "book": (
        "Knuth, The Art of Computer Programming, ISBN {isbn}, p. {n}.", "ISBN-13: {isbn:.3}-{tail}", "doi:10.1000/{k}.{n}",
        "RFC {n}, ISO {m}-1:2019",
        "arXiv:2401.{n:05}v2", "PMID: {m}; PMCID: PMC{m}", "Pages {n}-{m}, vol. 12(3)",
    ),
    "place": ("The hut lies at {lat:.6f}, {lon:.6f}.", '{{"lat": {lat:.7f}, "lng": {lon:.7f}}}', "[{lon:.4f},{lat:.4f}]",
    "{a}°{b}'{d}.25\"N"),
    "float": ("[{x}, {y}, {lat}, {lon}]", "{x:.3e} {y:.3e} {lat:.3e}", "{x:.4f}\t{y:.4f}\t{lon:.4f}",
    "loss={x:.10f} lr={lat:.6g}", "assert x == {y!r}"),
    "integer": (
        "[{n}, {m}, {k}, {a}]", "seed={m}, offset={k}", "{n:>12}\n{m:>12}\n{k:>12}", "{k:,} of {m:,} rows",
        "order no. {k} / invoice {m}",
        "0x{k:08x} + 0b{n:09b}", "INSERT INTO t VALUES ({m}, {k})", "$ {k:,}.99 was paid for {n} units",
        "tracking {k}{m:06}", "chr{a}:{k}-{k}",
        "part number {n}-{m}-A, drawing 12 of 345", "{n}x{m} pixels at 72 dpi, {k} bytes", "It took {n} ms for {m} calls.",
        "phi = 1.618033{k}",
    ),
    "code": (
        "x[{n}::2], std::vector<int> v; a::b({m})", "@property\ndef key(self): return self._{n} @ matrix",
        "token = tokenizer.decode([{n}, {m}])",
        "password = getpass.getpass()\nsecret = os.environ['KEY_{n}']", 'api_key="YOUR_API_KEY"  # line {n}',
        "if err := call({m}): raise E({n})",
        "for i in range({n}, {m}): print(f'{{i:>8}}')", "mail me at user@example.com, id {n}",
        "http://user:password@localhost:{n}/",
        "#define MASK 0x{m:08X}UL",
    ),
    "network": (
        "bind 0.0.0.0:{n}", "server 192.168.{a}.{b};", "10.{a}.{b}.0/24 via 127.0.0.1", "host 172.16.{a}.{b}",
        "as 192.0.2.{a} and 2001:db8::{n:x}",
        "fe80::{n:x}:{a:x}%eth0 and ::1", "ether 02:42:ac:{a:02x}:{b:02x}:02", "netmask 255.255.{a}.0",
        "multicast 224.0.0.{a}", "12:{a:02}:{b:02} up",
    ),
}  # fmt: skip


def library_rows(limit: int, seed: int) -> Iterator[str]:
    """Yields parts of 2,000 characters of the library's modules and documentation, drawn from all that name nobody."""
    files = sorted(library_root().rglob("*.py"))
    files = [path for path in files if not {"site-packages", "test", "tests"} & set(path.parts)]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    parts = [text[start : start + _CHARACTERS] for text in texts for start in range(0, len(text), _CHARACTERS)]
    clean = [part for part in parts if not _NAMES_SOMEBODY.search(part)]
    yield from random.Random(seed).sample(clean, min(limit, len(clean)))


def gsm8k_rows(limit: int) -> Iterator[str]:
    """Yields questions with their answers, where the data set lies beside the repository."""
    if GSM8K.exists():
        for line in GSM8K.read_text(encoding="utf-8").splitlines()[:limit]:
            row = json.loads(line)
            yield f"{row['question']}\n{row['answer']}"


def number_rows(count: int, seed: int) -> Iterator[str]:
    """Yields short texts with numbers that are no person's: versions, dates, hashes, ISBNs, places, private addresses."""
    chance = random.Random(f"clean {seed}")
    for _ in range(count):
        template = chance.choice(_TEMPLATES[chance.choice(list(_TEMPLATES))])
        yield template.format(**_drawn(chance))


def _drawn(chance: random.Random) -> dict[str, Any]:
    """Values for every field of a template."""
    sha, other = (hashlib.sha256(str(chance.random()).encode()).hexdigest() for _ in range(2))
    day = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.randrange(10**9))
    twelve = f"978{chance.randrange(10**9):09}"
    isbn = twelve + str(-sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(twelve)) % 10)
    return {
        **{name: chance.randrange(40) for name in "abcd"},
        **{
            "n": chance.randrange(2_000),
            "m": chance.randrange(10**6),
            "k": chance.randrange(10 ** chance.randrange(3, 12)),
        },
        **{"sha": sha, "other": other, "uuid": uuid.UUID(sha[:32]), "day": day, "epoch": int(day.timestamp())},
        **{"isbn": isbn, "tail": f"{isbn[3]}-{isbn[4:8]}-{isbn[8:12]}-{isbn[12]}"},
        **{"lat": chance.uniform(-90, 90), "lon": chance.uniform(-180, 180)},
        **{name: chance.gauss(0, 10 ** chance.randrange(-3, 6)) for name in "xy"},
    }
