"""Personal data and secrets: each kind is found and masked, and what only looks like one is left alone."""

import base64
import json

import pytest
from tiny_corpus import AWS_KEY, chat

from data_contracts.config import DataConfig, PiiClass, PiiPolicy
from data_contracts.pii import mask_text, screen_row, screen_rows
from data_contracts.rows import Conversation, Document
from lineage.errors import BadInput
from lineage.section import parse

JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
    for part in ({"alg": "HS256"}, {"sub": "12345"})
)
# Joined here, so that no scanner takes this file for a leak. One for every plugin that pii.py lists.
SECRETS = [
    AWS_KEY,
    "AKC" + "p5budTFpbypBqbQGJPz3pGCi28pPivfWczqjfYb9drAmd9LbRZbj6UpKFxJXA8ksWGc9fM",
    "AccountKey=" + "x" * 86 + "==",
    "M" + "TIzNDU2Nzg5MDEyMzQ1Njc4" + ".XsJJdw." + "a" * 27,
    "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
    "glpat-" + "hellOworld380_testin",
    JWT + "." + "c2lnbmF0dXJl",
    "343ea45721923ed956e2b38c31db76aa" + "-us30",
    "//registry.npmjs.org/:_authToken=" + "npm_xxxxxxxxxxx",
    "sk-" + "a" * 20 + "T3Blbk" + "FJ" + "b" * 20,
    "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE" + " KEY-----",
    "pypi-AgEIcHlwaS5vcmc" + "x" * 70,
    "SG." + "n" * 22 + "." + "g" * 43,
    "xoxb-" + "34532454-e039d02840a0b9379c",
    "sq0csp-" + "ABCDEFGHIJK_LMNOPQRSTUVWXYZ-0123456789abcd"[:43] + "e",
    "sk_live_" + "ReTllpYQYfIZu2Jnf2lAPFjD",
    "110201543:" + "AAHdqTcvCH1vGWJxfSe1ofSAs0K5PALDsaw",
    "SK" + "0123456789abcdef" * 2,
]
PERSONAL = {
    "email": ["jane@doe.org", "a.b+c@mail.some-where.co.uk"],
    "phone": ["+49 30 901820", "+1 (650) 253-0000"],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
}


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_every_kind_of_secret_is_found_and_masked_whole(secret: str) -> None:
    masked, found = mask_text(f"Use this: {secret}\nand go")
    assert found
    assert masked == "Use this: <secret>\nand go"


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_personal_data_is_masked_with_its_type(kind: str, text: str) -> None:
    assert mask_text(f"It is {text}, really.") == (f"It is <{kind}>, really.", [kind])


@pytest.mark.parametrize(
    "text",
    [
        "mail root@localhost or me@example.com or x@sub.example.org",
        "@dataclass(frozen=True)\n@property\nmatrix @ vector",
        "card 4111 1111 1111 1112 fails its check digit",
        "DE89 3704 0044 0532 0130 01 fails its check digits",
        "3.14159265358979323846 and 0x4111111111111111 and 20261120113011",
        "call +1 234 and 2**31 = 2147483648",
        "password = 'hunter2'; AKIA is a prefix; SKELETON; ACCESS; eyJ",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert mask_text(text) == (text, [])


def test_bare_national_phone_numbers_need_a_word_or_their_region() -> None:
    assert mask_text("It was 030901820 now.")[1] == []
    assert mask_text("It was 030901820 now.", "DE") == ("It was <phone> now.", ["phone"])
    assert mask_text("Call 030901820 now.") == ("Call <phone> now.", ["phone"])


def test_policy_decides_on_personal_data_and_never_on_secrets() -> None:
    rows = [
        Document(id=i, text=t, source="s") for i, t in (("a", "to jane@doe.org"), ("b", f"key {AWS_KEY}"), ("c", "fine"))
    ]
    redacted = screen_rows(rows, "redact", "")
    assert list(redacted.quarantined) == [1]
    assert redacted.quarantined[1].text == "holds a secret: AWS Access Key"
    assert [row.texts() for row in redacted.rows] == [["to <email>"], ["key <secret>"], ["fine"]]
    assert redacted.num_redacted == 1
    assert list(screen_rows(rows, "quarantine", "").quarantined) == [0, 1]


def test_all_turns_of_a_conversation_are_checked() -> None:
    row = Conversation.model_validate({"id": "c", "messages": chat("Who?", "jane@doe.org"), "source": "s"})
    assert list(screen_rows([row], "quarantine", "").quarantined) == [0]


@pytest.mark.parametrize(
    ("overrides", "text", "rule"),
    [
        ({}, "<email>, <ip>, <secret>", "secret"),
        ({"secret": "redact"}, "<email>, <ip>, <secret>", "personal_data"),
        ({"secret": "redact", "email": "redact"}, "<email>, <ip>, <secret>", "personal_data"),
        ({"secret": "redact", "email": "redact", "ip": "redact"}, "<email>, <ip>, <secret>", ""),
        ({"secret": "redact", "email": "redact", "ip": "allow"}, "<email>, 93.184.216.34, <secret>", ""),
        ({"secret": "allow", "email": "quarantine", "ip": "allow"}, f"<email>, 93.184.216.34, {AWS_KEY}", "personal_data"),
    ],
)
def test_a_class_has_a_policy_of_its_own(overrides: dict[PiiClass, PiiPolicy], text: str, rule: str) -> None:
    row = Document(id="a", text=f"jane@doe.org, 93.184.216.34, {AWS_KEY}", source="s")
    screened = screen_row(row, "quarantine", "", overrides)
    assert screened.row.texts() == [text]
    assert (screened.reason.rule if screened.reason else "") == rule


def test_a_reason_names_the_classes_and_nothing_that_was_found() -> None:
    row = Document(id="a", text="jane@doe.org, 93.184.216.34, SSN 123-45-6789", source="s")
    reason = screen_row(row, "quarantine", "").reason
    assert reason is not None
    assert reason.text == "holds personal data: email, ip (IPv4 address), national_id (US SSN)"


def test_policies_are_read_from_a_recipe() -> None:
    config = parse(
        DataConfig, {"sources": [{"kind": "stdlib"}], "pii": {"email": "redact", "ip": "allow"}}, "r.yaml", "data"
    )
    assert config.pii.overrides() == {"email": "redact", "ip": "allow"}
    assert DataConfig.model_validate({"sources": [{"kind": "stdlib"}]}).pii.overrides() == {}
    with pytest.raises(BadInput, match=r"data\.pii\.emial: unknown key.*did you mean `email`"):
        parse(DataConfig, {"sources": [{"kind": "stdlib"}], "pii": {"emial": "redact"}}, "r.yaml", "data")
    with pytest.raises(BadInput, match=r"data\.pii\.email: .*'redact', 'quarantine' or 'allow'"):
        parse(DataConfig, {"sources": [{"kind": "stdlib"}], "pii": {"email": "mask"}}, "r.yaml", "data")


def test_what_cannot_be_replaced_takes_its_row_out_and_is_masked_there() -> None:
    call = {"function": {"name": "lookup", "arguments": {"jane@doe.org": {"q": "+49 30 901820"}}}}
    row = Conversation.model_validate({
        "id": "c", "source": "s", "messages": [
            {"role": "user", "content": "Who?", "name": "joe@doe.org"},
            {"role": "assistant", "tool_calls": [call]},
        ],
    })  # fmt: skip
    screened = screen_row(row, "redact", "")
    assert screened.reason is not None
    assert screened.reason.text == "holds personal data: email"
    assert "doe.org" not in screened.row.model_dump_json()
    assert "901820" not in screened.row.model_dump_json()
    assert screen_row(row, "redact", "", {"email": "allow"}).reason is None


def test_many_findings_in_one_text_take_linear_time() -> None:
    masked, found = mask_text("jane@doe.org " * 20_000)
    assert len(found) == 20_000
    assert masked == "<email> " * 20_000
