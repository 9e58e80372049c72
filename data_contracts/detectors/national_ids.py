"""Numbers that a state gives its people, of more than forty countries, most of them with check digits (python-stdnum).

Where the way that it is written says what a number is (`123-45-6789`, a codice fiscale), nothing more is needed. A bare
number needs a word beside it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from data_contracts.detectors.finding import NUMBER_END, NUMBER_START, Finding, beside, words


@dataclass(frozen=True)
class _Id:
    """One kind of number.

    Attributes:
        name: country and name.
        module: what checks it, a module of python-stdnum; "" where there are no check digits, so that the layout decides.
        layout: a regular expression, in which `~` is an optional space, dot or dash.
        words: of which one must stand beside it; none where the layout says enough.
    """

    name: str
    module: str
    layout: str
    words: tuple[str, ...] = ()


_NINO = r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]~\d\d~\d\d~\d\d~[A-D]"
_IDS: tuple[_Id, ...] = (
    _Id("US SSN", "us.ssn", r"\d{3}-\d\d-\d{4}"),
    _Id("US ITIN", "us.itin", r"9\d\d-\d\d-\d{4}"),
    _Id("UK NINO", "", _NINO),
    _Id("UK NINO", "", r"[A-Z]{2} \d\d \d\d \d\d [A-Z]"),
    _Id("French NIR", "fr.nir", r"[12378]~\d\d~(?:0[1-9]|1[0-2]|[2-9]\d)~(?:\d\d|2[AB])~\d{3}~\d{3}~\d\d"),
    _Id("Spanish DNI", "es.dni", r"\d{8}[ -]?[A-HJ-NP-TV-Z]|\d\d\.\d{3}\.\d{3}-?[A-HJ-NP-TV-Z]"),
    _Id("Spanish NIE", "es.nie", r"[XYZ][ -]?\d{7}[ -]?[A-HJ-NP-TV-Z]"),
    _Id("Italian codice fiscale", "it.codicefiscale", r"(?i:[A-Z]{3} ?[A-Z]{3} ?\d\d[A-EHLMPR-T]\d\d ?[A-Z]\d{3} ?[A-Z])"),
    _Id("Finnish HETU", "fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[\dA-Y]"),
    _Id("Swedish personnummer", "se.personnummer", r"(?:19|20)?\d{6}[-+]\d{4}"),
    _Id("Belgian national number", "be.nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
    _Id("Swiss AHV number", "ch.ssn", r"756\.?\d{4}\.?\d{4}\.?\d\d"),
    _Id("Brazilian CPF", "br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d"),
    _Id("Chilean RUT", "cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    _Id("Argentine CUIL", "ar.cuit", r"2[0347]-\d{8}-\d"),
    _Id("Mexican CURP", "mx.curp", r"(?i:[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d)"),
    _Id("Chinese resident number", "iso7064.mod_11_2", r"[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])[0-3]\d{4}[\dXx]"),
    _Id("Korean RRN", "kr.rrn", r"\d{6}-\d{7}"),
    _Id("Czech or Slovak birth number", "cz.rc", r"\d{6}/\d{3,4}"),
    _Id("Thai PIN", "th.pin", r"\d-\d{4}-\d{5}-\d\d-\d"),
    _Id("Malaysian NRIC", "my.nric", r"\d{6}-\d\d-\d{4}"),
    _Id("Pakistani CNIC", "pk.cnic", r"\d{5}-\d{7}-\d"),
    _Id("Dominican cedula", "do.cedula", r"\d{3}-\d{7}-\d"),
    _Id("Portuguese cartão de cidadão", "pt.cc", r"\d{8} ?\d ?[A-Z]{2}\d"),
    # from here on a word must stand beside it
    _Id("US SSN", "", r"\d{3}~\d\d~\d{4}", ("ssn", "social security*", "socialsecurity*")),
    _Id("US ITIN", "us.itin", r"9\d\d~\d\d~\d{4}", ("itin", "tin", "taxpayer*", "tax id*")),
    _Id("UK NINO", "", r"(?i:[A-Z]{2}~\d\d~\d\d~\d\d~[A-Z])", ("nino", "ssn", "national insurance*", "ni number", "ni no")),
    _Id("UK NHS number", "gb.nhs", r"\d{3}~\d{3}~\d{4}", ("nhs",)),
    _Id("German Steuer-ID", "de.idnr", r"\d\d~\d{3}~\d{3}~\d{3}", ("steuer*", "idnr", "id nr", "tin", "tax*", "tin nr")),
    _Id(
        "German insurance number",
        "",
        r"\d\d~[0-3]\d[01]\d{3}~[A-Z]~\d{3}",
        ("sozialversicherung*", "rentenversicherung*", "versicherungsnummer", "rvnr", "svnr", "sv nummer"),
    ),
    _Id("Korean RRN", "", r"\d{6}~[1-8]\d{6}", ("주민등록*", "rrn", "resident registration*")),
    _Id("Spanish DNI", "es.dni", r"(?i:\d{8}~[A-Z])", ("dni", "nif", "identidad", "documento")),
    _Id("Spanish NIE", "es.nie", r"(?i:[XYZ]~\d{7}~[A-Z])", ("nie", "nif", "extranjero")),
    _Id(
        "Dutch BSN", "nl.bsn", r"\d{4}~\d\d~\d{3}|\d{3}~\d{3}~\d{3}", ("bsn", "burgerservice*", "sofi*", "citizen service*")
    ),
    _Id("Polish PESEL", "pl.pesel", r"\d{11}", ("pesel",)),
    _Id("Norwegian fødselsnummer", "no.fodselsnummer", r"\d{6}~\d{5}", ("f[øo]dsels*", "personnummer", "birth number")),
    _Id("Danish CPR", "", r"[0-3]\d[01]\d{3}~\d{4}", ("cpr*", "personnummer")),
    _Id("Swedish personnummer", "se.personnummer", r"(?:19|20)?\d{6}~\d{4}", ("personnummer", "personal identity*", "pnr")),
    _Id(
        "Belgian national number",
        "be.nn",
        r"\d\d~\d\d~\d\d~\d{3}~\d\d",
        ("rijksregister*", "registre national", "num[ée]ro national", "national number", "niss", "insz", "nrn", "rrn"),
    ),
    _Id("Portuguese NIF", "pt.nif", r"\d{3}~\d{3}~\d{3}", ("nif", "contribuinte", "identificação fiscal")),
    _Id(
        "Austrian insurance number",
        "at.vnr",
        r"\d{4}~\d{6}",
        ("sozialversicherung*", "svnr", "sv nummer", "vsnr", "versicherung*"),
    ),
    _Id("Brazilian CPF", "br.cpf", r"\d{3}~\d{3}~\d{3}~\d\d", ("cpf",)),
    _Id("Chilean RUT", "cl.rut", r"(?:\d{1,2}~)?\d{3}~\d{3}~[\dkK]", ("rut", "run")),
    _Id("Argentine CUIL", "ar.cuit", r"\d\d~\d{8}~\d", ("cuil", "cuit")),
    _Id("Canadian SIN", "ca.sin", r"\d{3}~\d{3}~\d{3}", ("sin", "social insurance*", "assurance sociale")),
    _Id("Australian TFN", "au.tfn", r"\d{3}~\d{3}~\d{2,3}", ("tfn", "tax file*")),
    _Id("Indian Aadhaar", "", r"\d{4}~\d{4}~\d{4}", ("aadhaa?r*", "uidai", "uid")),
    _Id("Turkish identity number", "tr.tckimlik", r"[1-9]\d{10}", ("kimlik*", "tckn", "t\\.?c\\.?")),
    _Id("South African ID", "za.idnr", r"\d{6}~\d{4}~\d{3}", ("rsa id", "sa id", "south african*")),
    _Id("Israeli ID", "il.idnr", r"\d{8}-?\d", ("teudat*", "israel*", "ת.ז")),
    _Id("Romanian CNP", "ro.cnp", r"[1-9]\d{12}", ("cnp", "cod numeric*")),
    _Id("Bulgarian EGN", "bg.egn", r"\d{10}", ("egn", "егн")),
    _Id("Croatian OIB", "hr.oib", r"\d{11}", ("oib", "osobni identifikacijski*")),
    _Id("Slovenian EMŠO", "si.emso", r"\d{13}", ("em[sš]o", "jmbg")),
    _Id("Estonian isikukood", "ee.ik", r"[1-6]\d{10}", ("isikukood*", "personal code")),
    _Id("Lithuanian asmens kodas", "lt.asmens", r"\d{11}", ("asmens kod*", "personal code")),
    _Id("Latvian personas kods", "lv.pvn", r"\d{6}~\d{5}", ("personas kod*", "personal code")),
    _Id("Greek AMKA", "gr.amka", r"\d{11}", ("amka", "αμκα")),
    _Id("Irish PPS", "ie.pps", r"\d{7}~[A-Wa-w][A-IWa-iw]?", ("ppsn?*", "personal public service*")),
    _Id("Icelandic kennitala", "is_.kennitala", r"\d{6}~\d{4}", ("kennitala", "kt")),
    _Id("Japanese My Number", "jp.in_", r"\d{4}~\d{4}~\d{4}", ("my number", "マイナンバー", "個人番号")),
    _Id("Indonesian NIK", "id.nik", r"\d{16}", ("nik", "ktp")),
    _Id("Ukrainian RNTRC", "ua.rntrc", r"\d{10}", ("рнокпп", "іпн", "ідентифікаційний", "rntrc")),
    _Id("Ecuadorian cedula", "ec.ci", r"\d{9}~\d", ("c[ée]dula*",)),
    _Id("Mexican CURP", "mx.curp", r"(?i:[A-Z]{4}~\d{6}~[HMX][A-Z]{5}~[A-Z\d]\d)", ("curp",)),
    _Id(
        "Chinese resident number",
        "iso7064.mod_11_2",
        r"(?i:\d{6}~\d{8}~\d{3}[\dX])",
        ("身份证*", "公民身份*", "resident id*"),
    ),
)
# Words that say "a number of a person" without saying which: then every check is tried that there is.
_ANY = (
    "ssn", "national id*", "identity (?:number|card|no)", "id (?:number|card|no)", "identification (?:number|no)",
    "personal (?:id|number|no|identity|code)", "citizen (?:id|number)", "government id", "personalausweis*", "fiscal*",
    "tax (?:id|number|no|payer|ref)*", "social (?:insurance|security)*", "insee", "s[ée]curit[ée] sociale",
    "codice fiscale",
)  # fmt: skip

# Digits with single letters and separators between them, and the letters that some numbers begin with.
_RUN = re.compile(r"\d(?:[ ./+-]?[A-Za-z]?\d){5,}", re.ASCII)
_GROUP = re.compile(r"(?<=[ ./+-])\w", re.ASCII)
_LETTERS = re.compile(r"(?<![A-Za-z0-9_])(?:[A-Za-z]{3} ?[A-Za-z]{3}|[A-Za-z]{1,4})[ .-]?$")


def find_national_ids(text: str) -> Iterator[Finding]:
    """Yields national identity, insurance and tax numbers of people."""
    end = 0
    for run in _RUN.finditer(text):
        for start in _starts(text, run):
            if start >= end and (found := _read(text, start)):
                end = found.end
                yield found


def _starts(text: str, run: re.Match[str]) -> Iterator[int]:
    """Yields where a number may begin in a run of groups of digits: other numbers may stand before and behind it."""
    if letters := _LETTERS.search(text, max(0, run.start() - 8), run.start()):
        yield letters.start()
    yield run.start()
    for group in _GROUP.finditer(text, run.start(), run.end()):
        yield group.start()


def _read(text: str, start: int) -> Finding | None:
    """Returns the number that begins at a place, if any."""
    for ids in _told_by_layout(), _told_by_words():
        if ids.any_layout.match(text, start) and (not ids.any_word or _is_spoken_of(ids.any_word, text, start)):
            for id_, layout, said in ids.kinds:
                match = layout.match(text, start)
                if match and _is_right(id_.module, match[0]) and (said is None or beside(said, text, start, match.end())):
                    return Finding(start, match.end(), "national_id", id_.name)
    return None


def _is_spoken_of(word: re.Pattern[str], text: str, start: int) -> bool:
    return bool(word.search(text, max(0, start - 64), start + 64))


def _is_right(module: str, number: str) -> bool:
    """Whether the check digits and dates in a number are right."""
    if not module:
        return True
    check = import_module(f"stdnum.{module}")
    return bool(check.is_valid(number) or check.is_valid(re.sub(r"[ ./-]", "", number)))


@dataclass(frozen=True)
class _Ids:
    """Kinds of numbers, each with its layout and its words, and what tells quickly that a place is none of them."""

    kinds: list[tuple[_Id, re.Pattern[str], re.Pattern[str] | None]]
    any_layout: re.Pattern[str]
    any_word: re.Pattern[str] | None


@cache
def _told_by_layout() -> _Ids:
    ids = [id_ for id_ in _IDS if not id_.words]
    return _Ids([(id_, _layout(id_), None) for id_ in ids], _layout(*ids), None)


@cache
def _told_by_words() -> _Ids:
    ids = [id_ for id_ in _IDS if id_.words]
    said = [words(*id_.words, *(_ANY if id_.module else ())) for id_ in ids]
    every = dict.fromkeys(word for id_ in ids for word in (*id_.words, *_ANY))
    return _Ids([(id_, _layout(id_), one) for id_, one in zip(ids, said, strict=True)], _layout(*ids), words(*every))


def _layout(*ids: _Id) -> re.Pattern[str]:
    layouts = "|".join(dict.fromkeys(id_.layout.replace("~", "[ .-]?") for id_ in ids))
    return re.compile(f"{NUMBER_START}(?:{layouts}){NUMBER_END}", re.ASCII)
