"""Payment cards and bank accounts, which carry check digits."""

import re
from collections.abc import Iterator
from functools import cache

from data_contracts.detectors.finding import Finding, beside, words

_DIGITS = re.compile(r"(?<![\w.+])(?<!\d[-,/])(?:\d(?:[ -]?\d){11,}|\d{4}(?:\.\d{4}){3})(?!\w|[.,/-]\d)", re.ASCII)
# Issuer prefixes and lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Discover, JCB, UnionPay, Mir.
_ISSUED = re.compile(
    r"4\d{15}(?:\d{3})?|3(?:0[0-5]|[689]\d)\d{11}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|"
    r"6(?:011|4[4-9]\d|5\d\d)\d{12}|35\d{14}|62\d{14}|220[0-4]\d{12}"
)
# Maestro, Diners, old Visa and JCB: prefixes so short that a word must say that it is a card.
_ISSUED_OR_NAMED = re.compile(
    rf"{_ISSUED.pattern}|4\d{{12}}|3(?:0[0-59]|[689]\d)\d{{12,16}}|(?:5[06-8]\d\d|6\d{{3}}|0604)\d{{8,15}}|(?:2131|1800)\d{{11}}"
)
_CARD_LENGTHS = range(12, 20)
_CARD_WORDS = words(
    "card*", "visa", "mastercard*", "amex", "american express", "discover", "diners*", "jcb\\d*", "maestro", "credit*",
    "debit*", "kredit*", "karte*", "kaart*", "carte", "tarjeta*", "carta", "cart[aã]o", "karta", "kort", "cc", "pan",
    "payment*", "pay", "paid", "charged?", "billed", "billing*", "checkout", "カード", "卡", "카드",
)  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ -]?[A-Z0-9]{2})", re.IGNORECASE | re.ASCII)
_NEXT = re.compile(r"[ -]?[A-Z0-9]", re.IGNORECASE | re.ASCII)


def find_cards(text: str) -> Iterator[Finding]:
    """Yields payment card numbers: of a known issuer, and right by Luhn's check digit."""
    for run in _DIGITS.finditer(text):
        named = beside(_CARD_WORDS, text, run.start(), run.end())
        for start, end in _cards_in(run, _ISSUED_OR_NAMED if named else _ISSUED):
            yield Finding(start, end, "card", "card")


def _cards_in(run: re.Match[str], issued: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yields the places of cards in a run of groups of digits: other numbers may stand before and behind them."""
    from stdnum import luhn

    groups = list(re.finditer(r"\d+", run[0]))
    free_from = 0
    for first, group in enumerate(groups):
        digits, ends = "", []
        for other in groups[first:]:
            digits += other[0]
            if len(digits) >= _CARD_LENGTHS.stop or group.start() < free_from:
                break
            ends.append((other.end(), digits))
        for end, number in reversed(ends):
            if issued.fullmatch(number) and len(set(number)) > 1 and luhn.is_valid(number):
                yield run.start() + group.start(), run.start() + end
                free_from = end
                break


def find_ibans(text: str) -> Iterator[Finding]:
    """Yields bank account numbers: as long as their country's are, and right by their check digits (ISO 13616)."""
    from stdnum import iban

    for match in _IBAN.finditer(text):
        length, end = _iban_lengths().get(match[0][:2].upper(), 0), match.start()
        for _ in range(length):
            if not (character := _NEXT.match(text, end)):
                break
            end = character.end()
        else:
            follows = text[end : end + 1]
            if length and not follows.isalnum() and iban.is_valid(text[match.start() : end], check_country=False):
                yield Finding(match.start(), end, "iban", "iban")


@cache
def _iban_lengths() -> dict[str, int]:
    """How long the IBANs of each country are, from the registry that python-stdnum carries."""
    from string import ascii_uppercase

    from stdnum import numdb

    registry = numdb.get("iban")
    countries = (first + second for first in ascii_uppercase for second in ascii_uppercase)
    layouts = {country: registry.info(country)[0][1].get("bban", "") for country in countries}
    return {country: 4 + sum(map(int, re.findall(r"\d+", bban))) for country, bban in layouts.items() if bban}
