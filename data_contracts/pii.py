"""Personal data and secrets in rows: found by what checks them, masked with typed placeholders or taken out, per class.

`detectors/` says where in a text something is; here is what it does to the row. Every function looks at one text or one
row alone and keeps nothing, so that rows may come in any number, order and process.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from data_contracts.config import PiiClass, PiiPolicy
from data_contracts.detectors.accounts import find_cards, find_ibans
from data_contracts.detectors.addresses import find_emails, find_ips
from data_contracts.detectors.credentials import find_credentials
from data_contracts.detectors.finding import Finding
from data_contracts.detectors.fold import fold
from data_contracts.detectors.hints import may_hold_ip, may_hold_number, may_hold_secret
from data_contracts.detectors.national_ids import find_national_ids
from data_contracts.detectors.phones import find_phones
from data_contracts.quarantine import Reason
from data_contracts.rows import Example, Row

PLACEHOLDERS = tuple(f"<{kind}>" for kind in get_args(PiiClass))
NO_OVERRIDES: Mapping[PiiClass, PiiPolicy] = {}


@dataclass(frozen=True)
class ScreenedRow:
    """A row after the check.

    Attributes:
        row: the row with every finding masked, but for those of classes that are allowed.
        reason: why it must not be kept; None for a row that stays.
        found: what was found and is not allowed, in order.
    """

    row: Row
    reason: Reason | None
    found: tuple[Finding, ...]


@dataclass(frozen=True)
class Screened:
    """Rows after the check.

    Attributes:
        rows: all rows in order, with every finding masked.
        quarantined: positions of rows that must not be kept; their text is masked too, so the quarantine file repeats none.
        num_redacted: rows that stay and were changed.
    """

    rows: list[Row]
    quarantined: dict[int, Reason]
    num_redacted: int


def screen_rows(
    rows: Sequence[Row], policy: PiiPolicy, phone_region: str, overrides: Mapping[PiiClass, PiiPolicy] = NO_OVERRIDES
) -> Screened:
    """Masks personal data and secrets in rows, and says which rows to take out; the arguments are those of `screen_row`."""
    screened = [screen_row(row, policy, phone_region, overrides) for row in rows]
    return Screened(
        rows=[one.row for one in screened],
        quarantined={position: one.reason for position, one in enumerate(screened) if one.reason},
        num_redacted=sum(bool(one.found) and one.reason is None for one in screened),
    )


def screen_row(
    row: Row, policy: PiiPolicy, phone_region: str, overrides: Mapping[PiiClass, PiiPolicy] = NO_OVERRIDES
) -> ScreenedRow:
    """Masks personal data and secrets in a row, and says whether to take it out.

    Args:
        policy: what personal data does to a row.
        phone_region: the ISO 3166 country whose national phone numbers are known in any layout; "" for none.
        overrides: what single classes do instead. A secret takes the row out unless they say otherwise.
    """
    policies: dict[PiiClass, PiiPolicy] = {**dict.fromkeys(get_args(PiiClass), policy), "secret": "quarantine", **overrides}
    mask = _Mask(phone_region, frozenset(kind for kind, does in policies.items() if does == "allow"))
    masked = row.rewrite(mask)
    out = [finding for finding in mask.found if policies[finding.kind] == "quarantine"]
    if isinstance(row, Example) and _has_names(row):
        # Programs read names and keys, so that a placeholder would break them: such a row cannot be redacted.
        num_texts = len(mask.found)
        fields = _hide(masked.model_dump(mode="json", include={*row.read, "tools"}), mask)
        if len(mask.found) > num_texts:
            masked = type(row).model_validate({**masked.model_dump(mode="json"), **fields})
            out += mask.found[num_texts:]
    return ScreenedRow(masked if mask.found else row, _reason(out) if out else None, tuple(mask.found))


def mask_text(text: str, phone_region: str = "") -> tuple[str, list[str]]:
    """Returns the text with typed placeholders such as `<email>` and `<secret>`, and the classes of what was found.

    >>> mask_text("Mail jane@doe.org")
    ('Mail <email>', ['email'])
    """
    mask = _Mask(phone_region)
    return mask(text), [finding.kind for finding in mask.found]


def find_in(text: str, phone_region: str = "") -> list[Finding]:
    """Returns all that is somebody's in a text, in order and without overlaps.

    Where two detectors claim a place, the one that checks more wins: a token may hold what looks like a number.
    """
    folded = fold(text)
    kept: list[Finding] = []
    for claim in _claims(folded.text, phone_region):
        after = bisect_left(kept, claim.start, key=lambda finding: finding.start)
        is_free = after == 0 or kept[after - 1].end <= claim.start
        if is_free and (after == len(kept) or claim.end <= kept[after].start):
            kept.insert(after, claim)
    return [replace(one, start=folded.place(one.start), end=folded.place(one.end)) for one in kept]


def _claims(text: str, phone_region: str) -> Iterator[Finding]:
    if may_hold_secret(text):
        yield from find_credentials(text)
    yield from find_emails(text)
    if may_hold_ip(text):
        yield from find_ips(text)
    if may_hold_number(text):
        yield from find_ibans(text)
        yield from find_cards(text)
        yield from find_national_ids(text)
        yield from find_phones(text, phone_region)


@dataclass
class _Mask:
    """Replaces what is found in one text after the other, and keeps what it was."""

    phone_region: str
    allowed: frozenset[PiiClass] = frozenset()
    found: list[Finding] = field(default_factory=list)

    def __call__(self, text: str) -> str:
        findings = [one for one in find_in(text, self.phone_region) if one.kind not in self.allowed]
        parts, end = [], 0
        for finding in findings:
            parts += [text[end : finding.start], f"<{finding.kind}>"]
            end = finding.end
        self.found += findings
        return "".join([*parts, text[end:]])


def _has_names(row: Example) -> bool:
    """Whether a row has texts that `rewrite` leaves as they are: names of tools and speakers, keys of arguments."""
    return row.calls_tools or (row.is_chat and any(turn.name for name in row.read for turn in getattr(row, name)))


def _hide(value: Any, mask: _Mask) -> Any:
    """Returns a JSON value with every text in it masked, keys too."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(name): _hide(part, mask) for name, part in value.items()}
    return [_hide(part, mask) for part in value] if isinstance(value, list) else value


def _reason(findings: Sequence[Finding]) -> Reason:
    """Names what was found, never the thing itself."""
    secrets = sorted({finding.name for finding in findings if finding.kind == "secret"})
    if secrets:
        return Reason("secret", f"holds a secret: {', '.join(secrets)}")
    kinds = {f"{one.kind} ({one.name})" if one.name != one.kind else one.kind for one in findings}
    return Reason("personal_data", f"holds personal data: {', '.join(sorted(kinds))}")
