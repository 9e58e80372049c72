"""Personal data and secrets of nobody, as people write them: from Faker in many locales, and by their issuers' rules."""

import base64
import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any, TypeAlias

from data_contracts.config import PiiClass

_DASHES = "-\u2010\u2011\u2012\u2013\u2212"
_SPACES = " \u00a0\u202f\u2009"
_ALONE, _NAMED = ("plain", "named", "url"), ("named", "url")
_TOKEN = ("plain", "named", "secret")


@dataclass(frozen=True)
class Value:
    """A value of a class.

    Attributes:
        name: what it is within the class.
        text: the value, as somebody would write it.
        words: what people call it.
        styles: the kinds of text that it may stand in; a value that does not explain itself only in those with a word.
    """

    name: str
    text: str
    words: tuple[str, ...]
    styles: tuple[str, ...]


class Maker:
    """Makes values with one source of chance."""

    def __init__(self, chance: random.Random) -> None:
        from faker import Faker

        self.chance = chance
        self.fakers = {locale: Faker(locale) for locale in _LOCALES}
        for faker in self.fakers.values():
            faker.seed_instance(chance.randrange(2**32))

    def make(self, kind: PiiClass) -> Value:
        """Returns one random value of a class."""
        makers: dict[PiiClass, Callable[[], Value]] = {
            "email": self._email,
            "phone": self._phone,
            "card": self._card,
            "iban": self._iban,
            "national_id": self._national_id,
            "ip": self._ip,
            "secret": self._secret,
        }
        return makers[kind]()

    def _email(self) -> Value:
        locale, faker = self.chance.choice(list(self.fakers.items()))
        address = self.chance.choice([faker.email, faker.free_email, faker.company_email])()
        user, _, domain = address.partition("@")
        forms = [address] * 8 + [
            address.title(),
            f"{user}+list{self.chance.randrange(90)}@{domain}",
            f"{user}(at){domain}",
            f"{user} [at] {domain.replace('.', ' [dot] ')}",
        ]
        words = ("e-mail", "email address", "e-mail address", "contact")
        return Value(f"email {locale}", self.chance.choice(forms), words, (*_ALONE, "email"))

    def _phone(self) -> Value:
        locale = self.chance.choice(_PHONE_LOCALES)
        number = self.fakers[locale].phone_number()
        told = re.match(r"\(?\+|\(\d{3}\) ?\d{3}-\d{4}|\d{3}([-.])\d{3}\1\d{4}$", number)
        words = _PHONE_WORDS.get(locale[:2], ("phone number", "mobile number", "phone"))
        return Value(f"phone {locale}", self._restyled(number), words, (*(_ALONE if told else ("named",)), "phone"))

    def _card(self) -> Value:
        brand = self.chance.choice(_CARD_BRANDS)
        digits = self.fakers["en_US"].credit_card_number(card_type=brand)
        sizes = {15: (4, 6, 5), 14: (4, 6, 4)}.get(len(digits), (4, 4, 4, 4, 4))
        text = digits if self.chance.random() < 0.3 else self._restyled(_grouped(digits, sizes, self.chance.choice(" -")))
        words = ("card number", "credit card", "Kreditkarte", "carte bancaire", "tarjeta", "debit card", "Visa card")
        return Value(f"card {brand}", text, words, _NAMED if brand in ("maestro", "visa13") else _ALONE)

    def _iban(self) -> Value:
        number = self.fakers[self.chance.choice(_IBAN_LOCALES)].iban()
        fours = (4,) * 9
        forms = [number, number, number.lower(), *[_grouped(number, fours, mark) for mark in (" ", " ", "-", "\u00a0")]]
        words = ("IBAN", "account", "Kontonummer", "bank account")
        return Value(f"iban {number[:2]}", self.chance.choice(forms), words, _ALONE)

    def _national_id(self) -> Value:
        name, make, words, styles = self.chance.choice(_NATIONAL)
        number = str(make(self.fakers, self.chance))
        return Value(name, number if self.chance.random() < 0.7 else self._restyled(number), words, styles)

    def _ip(self) -> Value:
        words = ("IP address", "server", "remote host", "client ip")
        if self.chance.random() < 0.6:
            address = IPv4Address(0)
            while not address.is_global or address.is_multicast:
                address = IPv4Address(self.chance.randrange(2**32))
            return Value("IPv4 address", str(address), words, (*_ALONE, "ip"))
        groups = [
            self.chance.choice(["2001", "2a00", "2600", "2a02", "2409"]),
            f"{self.chance.randrange(0x1000, 0xFFFF):x}",
        ]
        groups += [f"{self.chance.randrange(1, 0xFFFF):x}" for _ in range(6)]
        if self.chance.random() < 0.5:
            groups[4:7] = [""]
        text = ":".join(groups)
        return Value("IPv6 address", text.upper() if self.chance.random() < 0.2 else text, words, ("plain", "named"))

    def _secret(self) -> Value:
        name, make, styles = self.chance.choice(_SECRETS)
        words = ("api_key", "API_TOKEN", "access_token", "client_secret", "auth_token", "SECRET_KEY")
        return Value(name, make(self.chance), words, styles)

    def _restyled(self, text: str) -> str:
        """The text with its dashes and spaces, if any, as another keyboard writes them."""
        if self.chance.random() < 0.6:
            return text
        return text.replace("-", self.chance.choice(_DASHES)).replace(" ", self.chance.choice(_SPACES))


def _grouped(digits: str, sizes: tuple[int, ...], separator: str) -> str:
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return separator.join(filter(None, (digits[start:end] for start, end in pairwise(ends))))


_PHONE_LOCALES = (
    "en_US", "en_US", "en_GB", "en_GB", "de_DE", "de_DE", "fr_FR", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "pt_BR",
    "sv_SE", "en_CA", "en_IN", "ja_JP", "ko_KR", "zh_CN", "tr_TR", "cs_CZ", "fi_FI", "en_AU", "de_AT", "de_CH",
)  # fmt: skip
_PHONE_WORDS = {
    "de": ("Telefonnummer", "Handynummer", "Tel", "Mobil"),
    "fr": ("téléphone", "numéro de téléphone", "tél"),
    "es": ("teléfono", "móvil"),
    "it": ("telefono", "cellulare"),
    "nl": ("telefoonnummer", "mobiel"),
    "pl": ("telefon", "numer telefonu"),
    "pt": ("telefone", "celular"),
    "sv": ("telefonnummer", "mobil"),
    "ja": ("電話番号", "携帯"),
    "ko": ("전화번호", "휴대폰"),
    "zh": ("手机号", "电话"),
    "tr": ("telefon",),
    "cs": ("telefon",),
    "fi": ("puhelinnumero",),
}
_CARD_BRANDS = (
    "visa16",
    "visa16",
    "mastercard",
    "mastercard",
    "amex",
    "discover",
    "jcb16",
    "diners",
    "maestro",
    "visa19",
    "visa13",
)
_IBAN_LOCALES = (
    "de_DE", "en_GB", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "de_AT", "de_CH", "pt_PT", "no_NO", "fi_FI", "tr_TR",
    "cs_CZ",
)  # fmt: skip
_LOCALES = sorted(
    {*_PHONE_LOCALES, *_IBAN_LOCALES, *["no_NO", "nl_BE", "es_CL", "es_MX", "ro_RO", "hr_HR", "et_EE", "pt_PT"]}
)

_Fakers: TypeAlias = dict[str, Any]
_MakeId: TypeAlias = Callable[[_Fakers, random.Random], str]


def _from(locale: str, method: str = "ssn", sizes: tuple[int, ...] = ()) -> _MakeId:
    """Returns a maker of what Faker has; with sizes of groups, half of it with spaces between them."""

    def make(fakers: _Fakers, chance: random.Random) -> str:
        number = str(getattr(fakers[locale], method)())
        return _grouped(number, sizes, " ") if sizes and chance.random() < 0.5 else number

    return make


def _bare_ssn(fakers: _Fakers, chance: random.Random) -> str:
    return str(fakers["en_US"].ssn()).replace("-", chance.choice(["", " "]))


def _nino(fakers: _Fakers, chance: random.Random) -> str:
    prefix = chance.choice("ABCEHJLMPRSWXY") + chance.choice("ABCEGHJKLMPRSWXY")
    number = f"{prefix}{chance.randrange(10**6):06}{chance.choice('ABCD')}"
    return chance.choice([number, number, _grouped(number, (2, 2, 2, 2, 1), " ")])


def _steuer_id(fakers: _Fakers, chance: random.Random) -> str:
    """Eleven digits: of the first ten one comes twice, the last is ISO 7064's check digit."""
    from stdnum.iso7064 import mod_11_10

    digits = chance.sample(string.digits, 10)
    digits.remove(next(digit for digit in digits if digit != digits[0]))
    digits.insert(chance.randrange(1, 10), chance.choice(digits))
    if digits[0] == "0":
        return _steuer_id(fakers, chance)
    number = "".join(digits)
    number += mod_11_10.calc_check_digit(number)
    return chance.choice([number, _grouped(number, (2, 3, 3, 3), " ")])


def _cpr(fakers: _Fakers, chance: random.Random) -> str:
    day, month, year, serial = (chance.randrange(low, high) for low, high in ((1, 29), (1, 13), (0, 100), (0, 10**4)))
    return f"{day:02}{month:02}{year:02}-{serial:04}"


# Those of style `_ALONE` need no word beside them: they are written as nothing else is.
_NATIONAL: tuple[tuple[str, _MakeId, tuple[str, ...], tuple[str, ...]], ...] = (
    ("US SSN", _from("en_US"), ("SSN", "social security number"), _ALONE),
    ("US SSN", _bare_ssn, ("SSN", "social security number"), _NAMED),
    ("UK NINO", _nino, ("National Insurance number", "NINO"), _ALONE),
    ("German Steuer-ID", _steuer_id, ("Steuer-ID", "IdNr", "tax ID", "Steueridentifikationsnummer"), _NAMED),
    ("German insurance number", _from("de_DE", "rvnr"), ("Sozialversicherungsnummer", "Rentenversicherungsnummer"), _NAMED),
    ("French NIR", _from("fr_FR", sizes=(1, 2, 2, 2, 3, 3, 2)), ("NIR", "numéro de sécurité sociale", "INSEE"), _ALONE),
    ("Spanish DNI", _from("es_ES", "nif"), ("DNI", "NIF"), _ALONE),
    ("Spanish NIE", _from("es_ES", "nie"), ("NIE",), _ALONE),
    ("Italian codice fiscale", _from("it_IT"), ("codice fiscale", "CF"), _ALONE),
    ("Dutch BSN", _from("nl_NL", sizes=(4, 2, 3)), ("BSN", "burgerservicenummer"), _NAMED),
    ("Polish PESEL", _from("pl_PL", "pesel"), ("PESEL", "numer PESEL"), _NAMED),
    ("Swedish personnummer", _from("sv_SE"), ("personnummer",), _ALONE),
    ("Finnish HETU", _from("fi_FI"), ("henkilötunnus",), _ALONE),
    ("Norwegian fødselsnummer", _from("no_NO", sizes=(6, 5)), ("fødselsnummer", "personnummer"), _NAMED),
    ("Danish CPR", _cpr, ("CPR-nummer", "CPR"), _NAMED),
    ("Belgian national number", _from("nl_BE"), ("rijksregisternummer", "national number"), _NAMED),
    ("Austrian insurance number", _from("de_AT", sizes=(4, 6)), ("Sozialversicherungsnummer", "SVNR"), _NAMED),
    ("Swiss AHV number", _from("de_CH"), ("AHV-Nummer",), _ALONE),
    ("Brazilian CPF", _from("pt_BR", "cpf"), ("CPF",), _ALONE),
    ("Chilean RUT", _from("es_CL", "person_rut"), ("RUT",), _NAMED),
    ("Mexican CURP", _from("es_MX", "curp"), ("CURP",), _ALONE),
    ("Canadian SIN", _from("en_CA"), ("SIN", "social insurance number"), _NAMED),
    ("Indian Aadhaar", _from("en_IN", "aadhaar_id", (4, 4, 4)), ("Aadhaar", "Aadhaar number"), _NAMED),
    ("Chinese resident number", _from("zh_CN"), ("身份证号", "身份证"), _ALONE),
    ("Korean RRN", _from("ko_KR"), ("주민등록번호", "RRN"), _NAMED),
    ("Turkish identity number", _from("tr_TR"), ("T.C. kimlik no", "TCKN"), _NAMED),
    ("Romanian CNP", _from("ro_RO"), ("CNP",), _NAMED),
    ("Croatian OIB", _from("hr_HR"), ("OIB",), _NAMED),
    ("Estonian isikukood", _from("et_EE"), ("isikukood",), _NAMED),
    ("Czech or Slovak birth number", _from("cs_CZ", "birth_number"), ("rodné číslo",), _NAMED),
)


def _drawn(layout: str, alphabet: str = string.ascii_letters + string.digits) -> Callable[[random.Random], str]:
    """Returns a maker of tokens: `#36` in a layout is 36 characters of the alphabet, drawn by lot."""

    def make(chance: random.Random) -> str:
        return re.sub(r"#(\d+)", lambda match: "".join(chance.choices(alphabet, k=int(match[1]))), layout)

    return make


def _jwt(chance: random.Random) -> str:
    parts = {"alg": "HS256", "typ": "JWT"}, {"sub": str(chance.randrange(10**9)), "iat": 1516239022}
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, _drawn("#43")(chance)])


def _private_key(chance: random.Random) -> str:
    kind = chance.choice(["RSA ", "EC ", "OPENSSH ", ""]) + "PRIVATE"
    lines = "\n".join(_drawn("#64")(chance) for _ in range(6))
    return f"-----BEGIN {kind} KEY-----\n{lines}\n-----END {kind} KEY-----"


_HEXADECIMAL, _BASE32 = "0123456789abcdef", string.ascii_uppercase + "234567"
# Their beginnings are joined here, so that no scanner takes this file for a leak.
_SECRETS: tuple[tuple[str, Callable[[random.Random], str], tuple[str, ...]], ...] = (
    ("AWS Access Key", _drawn("AK" + "IA#16", _BASE32), _TOKEN),
    ("GitHub Token", _drawn("gh" + "p_#36"), _TOKEN),
    ("GitHub Token", _drawn("github" + "_pat_#22_#59"), _TOKEN),
    ("GitLab Token", _drawn("gl" + "pat-#20"), _TOKEN),
    ("OpenAI Token", _drawn("sk-" + "proj-#48"), _TOKEN),
    ("Anthropic Key", _drawn("sk-" + "ant-api03-#80"), _TOKEN),
    ("Google API Key", _drawn("AI" + "za#35"), _TOKEN),
    ("Hugging Face Token", _drawn("h" + "f_#34", string.ascii_letters), _TOKEN),
    ("Slack Token", _drawn("xo" + "xb-#12-#13", string.digits), _TOKEN),
    ("Stripe Key", _drawn("sk" + "_live_#24"), _TOKEN),
    ("SendGrid Key", _drawn("S" + "G.#22.#43"), _TOKEN),
    ("npm Token", _drawn("np" + "m_#36"), _TOKEN),
    ("PyPI Token", _drawn("py" + "pi-AgEIcHlwaS5vcmc#70"), _TOKEN),
    ("DigitalOcean Token", _drawn("dop" + "_v1_#64", _HEXADECIMAL), _TOKEN),
    ("JSON Web Token", _jwt, _TOKEN),
    ("Private Key", _private_key, ("plain",)),
    ("Assigned Secret", _drawn("#40"), ("secret",)),
    ("Assigned Secret", _drawn("#32", _HEXADECIMAL), ("secret",)),
    ("Password in a URL", _drawn("#12"), ("login",)),
)
