"""What is found in a text and where: every class, every way to write it, and what belongs to nobody."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_contracts.detectors.fold import fold
from data_contracts.pii import find_in, mask_text

NATIONAL_IDS = {
    "US SSN": "on file: 123-45-6789",
    "UK NINO": "she is AB 12 34 56 C",
    "German Steuer-ID": "Steuer-ID 36 574 261 809",
    "German insurance number": "Rentenversicherungsnummer: 83180411R775",
    "French NIR": "n° 2 95 10 99 126 111 93",
    "Spanish DNI": "con 54362315K",
    "Spanish NIE": "con X-2482300-W",
    "Italian codice fiscale": "CF RCCMNL83S18D969H",
    "Dutch BSN": "BSN 1112.22.333",
    "Polish PESEL": "PESEL 44051401359",
    "Finnish HETU": "131052-308T",
    "Swedish personnummer": "880320-0016",
    "Norwegian fødselsnummer": "fødselsnummer 151086 95088",
    "Danish CPR": "CPR 211062-5629",
    "Belgian national number": "85.07.30-033.28",
    "Swiss AHV number": "756.9217.0769.85",
    "Austrian insurance number": "SVNR 1237 010180",
    "Brazilian CPF": "390.533.447-05",
    "Chilean RUT": "76.086.428-5",
    "Argentine CUIL": "20-05536168-2",
    "Mexican CURP": "BOXW310820HNERXN09",
    "Canadian SIN": "SIN 123-456-782",
    "Indian Aadhaar": "Aadhaar 2341 2341 2346",
    "Chinese resident number": "360426199101010071",
    "Korean RRN": "971013-9019902",
    "Turkish identity number": "T.C. kimlik no 17291716060",
    "Romanian CNP": "CNP 1630615123457",
    "Croatian OIB": "OIB 33392005961",
    "Estonian isikukood": "isikukood 36805280109",
    "Czech or Slovak birth number": "710319/2745",
    "Thai PIN": "1-2345-45678-78-1",
    "Pakistani CNIC": "34201-0891231-8",
    "UK NHS number": "NHS 943-476-5870",
}
WRITTEN = {
    "phone": [
        "(650) 253-0000", "650.253.0000 x12", "001-650-253-0000", "+49 (0)30 901820", "(+358) 763170669",
        "+33 1 23 45 67 89",
        "01 23 45 67 89", "(0116) 496 0123", "+49\u00a030\u2011901820", "+\uff14\uff19 30 901820", "tel:+16502530000",
        "?phone=%2B49%2030%20901820", "\\n+49 30 901820\\n", "Mobile 612345678", '"userPhone": "612345678"',
        "電話は090-1234-5678です",
    ],
    "email": [
        "jane@doe.org", "<jane.o'neil+x@mail.some-where.co.uk>", "mailto:jane%40doe.org", "jane [at] doe [dot] org",
        "jane(at)doe.org",
        "jürgen@müller.de", "\\njane@doe.org", "jane.miller82@example.org", "地址jane@doe.org。",
    ],
    "card": [
        "4111\u20131111\u20131111\u20131111", "card 3056 930902 5904", "5555.5555.5555.4444",
        "2026 4111 1111 1111 1111 737",
        "Visa 4222222222222", "?pan=4111%201111%201111%201111",
    ],
    "iban": [
        "DE89-3704-0044-0532-0130-00", "gb82 west 1234 5698 7654 32", "IBAN:FR1420041010050500013M02606",
        "MT84MALT011000012345MTLCAST001S",
    ],
    "ip": [
        "93.184.216.34", "http://93.184.216.34:80/", "93.184.216.34/32", "from 93.184.216.34-93.184.216.39",
        "2a00:1450:4001:80b::200e",
        "[2A00:1450:4001:80B:0:0:0:200E]:443", "host:2a00:1450:4001::e",
    ],
    "secret": [
        "postgres://app:Zx81hhQw@db:5432/app", "api_key = 'b7Fq2LxZ91mNcV5tR8kWdYp3'",
        '"client_secret": "9f86d081884c7d659a2feaa0c55ad015"',
        "Authorization: Bearer b7Fq2LxZ91mNcV5tR8kWdYp3", "sk-ant-" + "api03-Ab1Cd2Ef3Gh4Ij5Kl6Mn7",
    ],
}  # fmt: skip
NOBODYS = [
    "127.0.0.1, 10.1.2.3, 192.168.178.20, 172.16.0.1, 169.254.1.1, 192.0.2.7, 198.51.100.1, 203.0.113.9, 0.0.0.0",
    "ask 8.8.8.8 or 1.1.1.1; ::1, fe80::1%eth0, fc00::1, 2001:db8::1, ff02::1 and x[2000::2]",
    "version 12.34.56.78, Chrome/91.10.44.72, numpy==12.34.56.78, section 10.20.30.40, OID 1.3.6.1.4.1",
    "user@example.com, john.doe@example.org, root@localhost, ci@build.test, git@github.com:org/repo.git",
    "http://user:password@host/, https://${USER}:${TOKEN}@host/, token = tokenizer.convert_tokens_to_ids(x)",
    "api_key = 'YOUR_API_KEY_GOES_RIGHT_HERE', secret: os.environ['A_VERY_LONG_NAME_2_READ'], key = sha256_of_everything_1",
    "ISBN 978-3-16-148410-0, doi:10.1000/182, 2026-11-21 10:11:12, 20261121101112, 1700000000000, 48.858370, 2.294481",
    "f81d4fae-7dec-11d0-a765-00a0c91e6bf6 and 356a192b7913b04c54574d18c28d46e6395428ab and 0x4111111111111111",
    "123456789 is a number, 12345678 too, 12,345,678.90 and 3650-365 = 3285 phones at 1000 / 200",
    "std::vector<int> a::b; 12:34:56:78:9a:bc; 10:20:30",
]


@pytest.mark.parametrize(("name", "text"), NATIONAL_IDS.items())
def test_a_national_number_is_found_with_its_name(name: str, text: str) -> None:
    assert [(one.kind, one.name) for one in find_in(f"It says {text}, there.")] == [("national_id", name)]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in WRITTEN.items() for text in texts])
def test_every_way_to_write_it_is_found(kind: str, text: str) -> None:
    assert {one.kind for one in find_in(f"So: {text} ok")} == {kind}


@pytest.mark.parametrize("text", NOBODYS)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert mask_text(text) == (text, [])


@pytest.mark.parametrize(("bare", "told"), [("111222333", "BSN 111222333"), ("36574261809", "tax ID: 36574261809")])
def test_a_bare_number_needs_a_word_beside_it(bare: str, told: str) -> None:
    assert find_in(f"It is {bare} today.") == []
    assert [one.kind for one in find_in(f"It is {told} today.")] == ["national_id"]


def test_what_is_found_is_placed_in_the_original_text() -> None:
    text = 'a="x%20y" tel:%2B49%2030%20901820&b=\\u2013 &nbsp; jane%40doe.org!'
    assert [text[one.start : one.end] for one in find_in(text)] == ["%2B49%2030%20901820", "jane%40doe.org"]


def test_a_number_beside_others_is_found_alone() -> None:
    assert mask_text("2026 4111 1111 1111 1111 737")[0] == "2026 <card> 737"
    assert mask_text("cards 4111 1111 1111 1111 5555 5555 5555 4444")[0] == "cards <card> <card>"


def test_folding_keeps_what_needs_none() -> None:
    assert fold("plain text\n") == ("plain text\n", (), (0,))
    assert fold("Fläche").text == "Fläche"


@given(st.text(st.sampled_from("0123456789+-./:@%2B&#;()[]\\nu \tabcfgABX_=\u2013\u00a0\u0663ß"), max_size=120))
@settings(deadline=None)  # the first text imports phonenumbers
@example("%2B")
@example("+0000000000000000")
@example("&#64;&#0;")
def test_no_text_breaks_a_detector(text: str) -> None:
    found = find_in(text, "DE")
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(first.end <= second.start for first, second in itertools.pairwise(found))
