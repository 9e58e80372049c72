"""Rows with planted personal data, from a seed: what the detectors are measured on.

The text around the values is written here, so that nothing depends on what a detector happens to look for. A value without
a layout of its own (nine bare digits) stands in a text that says what it is, as it would for a reader.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from benchmarks.corpora.personal_values import Maker
from data_contracts.config import PiiClass

_TEMPLATES: dict[str, tuple[str, ...]] = {
    # around anything that explains itself
    "plain": (
        "I moved last week, so please use {v} from now on. Thanks!",
        "Between us: {v}. Do not pass it on.",
        "It was written on the back of the photograph ({v}) in pencil.",
        "{v}",
        "- {v}\n- milk\n- two loaves of bread",
        'Q: What did she leave with you?\nA: "{v}", nothing else.',
        "Name;Value;Remark\nHolm;{v};checked\nBerg;-;missing",
        "| who | what |\n|---|---|\n| Lena | {v} |",
        "<td>{v}</td><td>open</td>",
        "2026-03-14 09:26:53,589 INFO worker.intake: accepted {v} after 3 attempts",
    ),
    # around anything, with the word for it, also as a key or a column
    "named": (
        "My {w} is {v}, please update the file.",
        "{W}: {v}",
        "Please send the form back with your {w} ({v}) on the first page.",
        "She gave {v} as her {w}.",
        '{"name": "Ada", "{k}": "{v}", "age": 41}',
        '{"user":{"{k}":"{v}"}}',
        '{k} = "{v}"  # from the ticket',
        "record.set_{k}('{v}')",
        "Customer record\n  {W} ....... {v}\n  Status ....... open",
        "The note reads \\n{W}: {v}\\nand is signed.",
        "name,{k}\nSmith,{v}\n",
        "For the {w} the clerk typed {v} and pressed enter.",
    ),
    "url": (
        "https://shop.example.com/form?{k}={v}&step=2",
        "GET /v2/people?{k}={v} HTTP/1.1",
        "See http://intranet.test/{k}/{v}.",
    ),
    "email": (
        "Write to {v}.",
        "mailto:{v}?subject=Hello",
        "From: Jan <{v}>\nTo: list",
        "git config user.email {v}",
        "author = ('{v}',)",
    ),
    "phone": (
        "Call me on {v} after six.",
        "You can reach us at {v}, Monday to Friday.",
        "tel:{v}",
        "Text me: {v}",
        "Fax {v}",
        "Mobile {v}, home address as before.",
        "Tel. {v}",
        "WhatsApp: {v}",
    ),
    "ip": (
        "ssh root@{v} -p 2222",
        "connect to {v}:8080 refused",
        '{v} - - [10/Oct/2026:13:55:36 +0000] "GET / HTTP/1.1" 200 2326',
        "http://{v}/index.html",
        "Failed password from {v} port 50022",
        "ping -c 3 {v}",
    ),
    "login": (
        "postgres://app:{v}@db.internal:5432/app",
        "git clone https://ada:{v}@git.corp.net/app.git",
        "REDIS_URL=redis://:{v}@cache:6379/0",
    ),
    "secret": (
        "export {k}={v}",
        "Authorization: Bearer {v}",
        'client = Client(api_key="{v}")',
        "{k}: {v}",
        '{"{k}": "{v}"}',
        "curl -H 'X-Api-Key: {v}' https://api.example.com",
        "# remove before commit\nTOKEN = '{v}'",
    ),
}


@dataclass(frozen=True)
class Planted:
    """A text with one thing that is somebody's.

    Attributes:
        kind: the class.
        name: what it is within the class: `German Steuer-ID`, `phone de_DE`.
        text, start, end: the text, and where in it the thing is.
    """

    kind: PiiClass
    name: str
    text: str
    start: int
    end: int


def planted_rows(kind: PiiClass, count: int, seed: int) -> Iterator[Planted]:
    """Yields texts with one planted thing of a class each; the same for a seed."""
    chance = random.Random(f"{kind} {seed}")
    maker = Maker(chance)
    for _ in range(count):
        made = maker.make(kind)
        style, word = chance.choice(made.styles), chance.choice(made.words)
        value = made.text
        if style == "url":
            value = quote(value) if chance.random() < 0.5 else re.sub(r"\s", "", value)
        template = chance.choice(_TEMPLATES[style])
        for mark, fill in {"{w}": word, "{W}": word[:1].upper() + word[1:], "{k}": re.sub(r"\W+", "_", word)}.items():
            template = template.replace(mark, fill)
        before, _, after = template.partition("{v}")
        yield Planted(kind, made.name, before + value + after, len(before), len(before) + len(value))
