"""Phone numbers: international ones, national ones whose layout tells, and any number beside a word such as `mobile`."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_contracts.detectors.finding import NUMBER_END, Finding, beside, words

if TYPE_CHECKING:
    from phonenumbers import PhoneNumber

# Where one may be: digits with what stands between the groups of a number.
_RUN = re.compile(r"\d(?:[ ().\-/]{0,3}\d){6,}", re.ASCII)
_SEP = r"(?:[ .\-/]|[ -]?\(|\)[ .\-/]?| - )?"
_EXTENSION = r"(?: ?(?:x|ext\.?|#) ?\d{1,6})?"
_WITH_COUNTRY = re.compile(
    rf"(?<![\w+.])(?<!\w-)(?<!\d )\(?(?:\+\(?|00 ?(?=[1-9]))\d(?:{_SEP}\d){{7,14}}{_EXTENSION}(?!\w|[.,]\d)", re.ASCII
)
# Of which the layout tells, with nothing beside it: (650) 253-0000 and 650-253-0000; (0116) 496 0123; 01 23 45 67 89;
# 020 7946 0958, 01632-960123, 030/901820, 090-1234-5678.
_AMERICAN = r"(?:1[ .-])?(?:\([2-9]\d\d\)[ .-]?[2-9]\d\d[ .-]?\d{4}|[2-9]\d\d([.-])[2-9]\d\d\1\d{4})"
_PAIRS = r"0[1-9]([ .-])\d\d(?:\2\d\d){3}"
_BRACKETS = r"\(0\d{1,5}\)[ /-]?\d{2,8}(?:[ -]\d{2,5}){0,3}"
_GROUPS = r"0[1-9]\d{0,4}[ /-]\d{3,8}(?:[ -]\d{2,5}){0,2}"
_NATIONAL_LAYOUTS = rf"{_AMERICAN}{_EXTENSION}|{_PAIRS}|{_BRACKETS}|(?P<groups>{_GROUPS})"
_NATIONAL = re.compile(rf"(?<![\w.+])(?<!\w[-,/])(?<!\d )(?:{_NATIONAL_LAYOUTS}){NUMBER_END}", re.ASCII)
_ANY = re.compile(rf"(?<![\w.])\(?\+?\(?\d(?:{_SEP}\d){{6,15}}{_EXTENSION}(?!\w|[.,]\d| ?=)", re.ASCII)
# Numbers with these layouts are something else, whatever stands beside them: dates, decimals, money.
_YEAR = r"(?:19|20)\d\d"
_NO_PHONE = re.compile(
    rf"\+?\d{{4,}}\.\d+|\d+\.\d+|{_YEAR}([-/.])\d\d?\1\d\d?(?: \d.*)?|\d\d?([-/.])\d\d?\2{_YEAR}(?: \d.*)?|{_YEAR}-{_YEAR}"
)
_WORDS = words(
    "phone*", "tel", "telephone*", "mobile*", "mob", "cell", "cellphone*", "cellular*", "landline*", "hotline*", "fax*",
    "sms", "text me", "whatsapp", "voicemail", "switchboard", "msisdn", "dial", r"call\W{0,2}$", "caller*", "reachable",
    "call (?:me|us|him|her|them|at|on|back|now)", "called (?:me|us|him|her|them|from)", "reach (?:me|us|him|her|them)",
    "contact", "contact (?:me|us|him|her|them|number|no|at|on)",
    "telefon*", "handy*", "rufnummer*", "mobil*", "kontakt", "anrufen", "erreich*",  # German, and its neighbours
    "t[ée]l", "t[ée]l[ée]phone*", "appele[rz]*", "joindre", "joignable",  # French
    "tel[ée]fono*", "m[óo]vil", "celular", "llama[rd]*", "contacto", "cellulare", "chiama*", "contatto",  # Spanish, Italian
    "telefoon*", "telefone*", "puhelin*", "tlf", "zadzwoń*", "тел*",
    "電話*", "携帯", "手机", "手機", "电话", "전화", "휴대폰",
)  # fmt: skip
# Countries whose national numbers begin with 0.
_REGIONS = ("GB", "DE", "FR", "IT", "NL", "BE", "CH", "AT", "SE", "JP", "AU", "IN", "KR", "CN", "ZA")


def find_phones(text: str, region: str) -> Iterator[Finding]:
    """Yields phone numbers.

    Args:
        region: the ISO 3166 country whose national numbers are known in any layout, too; "" for none.
    """
    spans: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        around = max(0, run.start() - 3), run.end() + 12
        spans += (match.span() for match in _ANY.finditer(text, *around) if _is_named(text, match))
        spans += (match.span() for match in _NATIONAL.finditer(text, *around) if _is_national(match))
        for match in _WITH_COUNTRY.finditer(text, *around):
            if not _NO_PHONE.fullmatch(match[0]) and (length := _possible_length(match[0])):
                spans.append((match.start(), match.start() + length))
    if region:
        import phonenumbers

        spans += ((match.start, match.end) for match in phonenumbers.PhoneNumberMatcher(text, region))
    for start, end in sorted(set(spans)):
        yield Finding(start, end, "phone", "phone")


def _is_named(text: str, match: re.Match[str]) -> bool:
    return not _NO_PHONE.fullmatch(match[0]) and beside(_WORDS, text, *match.span())


def _possible_length(number: str) -> int:
    """Returns how much of groups of digits behind a country's code is as long as a number there can be; 0 for nothing."""
    from phonenumbers import is_possible_number

    for group in reversed(list(re.finditer(r"\d+", number))):
        parsed = _parse(re.sub(r"^00", "+", number[: group.end()]), None)
        if parsed and is_possible_number(parsed):
            return group.end()
    return 0


def _is_national(match: re.Match[str]) -> bool:
    """Whether groups of digits behind a 0 are a number of some country; the other layouts say enough by themselves."""
    from phonenumbers import is_valid_number

    if not match["groups"]:
        return True
    parsed = (_parse(match[0], region) for region in _REGIONS if sum(map(str.isdigit, match[0])) > 8)
    return any(one is not None and is_valid_number(one) for one in parsed)


def _parse(number: str, region: str | None) -> "PhoneNumber | None":
    from phonenumbers import NumberParseException, parse

    try:
        return parse(number, region)
    except NumberParseException:
        return None
