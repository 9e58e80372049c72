"""Personal data and secrets: each kind is found and masked, and what only looks like one is left alone."""

import base64
import json

import pytest
from tiny_corpus import AWS_KEY, chat

from data_contracts.pii import mask_text, screen_rows
from data_contracts.rows import Conversation, Document

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


def test_national_phone_numbers_need_their_region() -> None:
    assert mask_text("Call 030 901820 now.")[1] == []
    assert mask_text("Call 030 901820 now.", "DE") == ("Call <phone> now.", ["phone"])


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
