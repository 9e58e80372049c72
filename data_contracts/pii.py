"""Personal data and secrets in rows: found by libraries that check what they find, masked with typed placeholders.

Every detector has a cheap regular expression in front, so that the library behind it sees candidates only: payment cards
and IBANs must pass their check digits (python-stdnum), phone numbers must be valid numbers (phonenumbers), and secrets
must match a token format (detect-secrets; the plugins that guess from entropy or from words like `password =` are left
out, because they flag test vectors and documentation of honest code).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, Protocol

from data_contracts.quarantine import Reason
from data_contracts.rows import Row

Policy = Literal["redact", "quarantine"]

# RFC 2606 and RFC 6761: these domains belong to nobody, so an address there is an example and nobody's.
_EXAMPLE_DOMAIN = re.compile(r"@(?:[\w.-]+\.)?(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_INTERNATIONAL_PHONE = re.compile(r"\+\d(?:[\s().-]{0,2}\d){7,14}")
_ANY_PHONE = re.compile(r"\d(?:[\s()./-]{0,2}\d){6,}")
_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w.]\d|\w)")
# Issuer prefixes and lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Discover.
_CARD_ISSUER = re.compile(r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|6(?:011|5\d\d)\d{12}")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_PRIVATE_KEY = re.compile(
    r"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}.*?(?:-{4,5} ?END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}|\Z)",
    re.DOTALL,
)
# A text without any of these cannot match a plugin of `_secret_plugins`: each plugin's formats begin with or contain one.
_SECRET_HINT = re.compile(
    r"PRIVATE KEY|PuTTY-User-Key|A3T|AKIA|ABIA|ACCA|ASIA|(?i:aws)|AccountKey=|gh[pousr]_|gl[a-z]{2,9}-|GR1348941|eyJ|"
    r"(?i:xox[abposr]-)|hooks\.slack|[rs]k_live_|SG\.|T3BlbkFJ|sq0csp|-us\d|AKC|AP[\dA-F]|_authToken|pypi-|[MNO][\w-]{23}|"
    r"\d{8}:[\w-]{35}|(?:AC|SK)[a-z0-9]{32}"
)
_SECRET_PLUGINS = (
    "artifactory.ArtifactoryDetector",
    "aws.AWSKeyDetector",
    "azure_storage_key.AzureStorageKeyDetector",
    "discord.DiscordBotTokenDetector",
    "github_token.GitHubTokenDetector",
    "gitlab_token.GitLabTokenDetector",
    "jwt.JwtTokenDetector",
    "mailchimp.MailchimpDetector",
    "npm.NpmDetector",
    "openai.OpenAIDetector",
    "private_key.PrivateKeyDetector",
    "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector",
    "slack.SlackDetector",
    "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
    "telegram_token.TelegramBotTokenDetector",
    "twilio.TwilioKeyDetector",
)


class _Plugin(Protocol):
    secret_type: str
    denylist: Sequence[re.Pattern[str]]

    def analyze_string(self, string: str) -> Iterator[str]: ...


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


def screen_rows(rows: Sequence[Row], policy: Policy, phone_region: str) -> Screened:
    """Masks personal data and secrets in rows, and says which rows to take out.

    Args:
        policy: what personal data does to a row; a secret always takes it out.
        phone_region: the ISO 3166 country whose national phone numbers are known; "" knows international ones only.
    """
    screened, quarantined, num_redacted = [], {}, 0
    for position, row in enumerate(rows):
        found: list[str] = []
        masked = row.rewrite(partial(_mask, phone_region=phone_region, found=found)) if _suspicious(row) else row
        secrets = [kind for kind in found if kind not in _PII]
        if secrets:
            quarantined[position] = Reason("secret", f"holds a secret: {', '.join(sorted(set(secrets)))}")
        elif found and policy == "quarantine":
            quarantined[position] = Reason("personal_data", f"holds personal data: {', '.join(sorted(set(found)))}")
        num_redacted += bool(found) and position not in quarantined
        screened.append(masked)
    return Screened(screened, quarantined, num_redacted)


def mask_text(text: str, phone_region: str = "") -> tuple[str, list[str]]:
    """Returns the text with typed placeholders such as `<email>` and `<secret>`, and the kinds of what was found, in order.

    >>> mask_text("Mail jane@doe.org")
    ('Mail <email>', ['email'])
    """
    found: list[str] = []
    return _mask(text, phone_region, found), found


def _suspicious(row: Row) -> bool:
    """Whether a row could hold anything at all: most rows have neither an @, nor a long number, nor a secret's mark."""
    return any(
        "@" in text or _ANY_PHONE.search(text) or _IBAN.search(text) or _SECRET_HINT.search(text) for text in row.texts()
    )


def _mask(text: str, phone_region: str, found: list[str]) -> str:
    """Masks secrets first: a token may hold what looks like a number."""
    text = _mask_secrets(text, found)
    for kind, pattern, is_real in _CHECKED:
        text = pattern.sub(partial(_replace, kind=kind, is_real=is_real, found=found), text)
    return _mask_phones(text, phone_region, found)


def _replace(match: re.Match[str], kind: str, is_real: Callable[[str], bool], found: list[str]) -> str:
    if not is_real(match[0]):
        return match[0]
    found.append(kind)
    return f"<{kind}>"


def _is_email(text: str) -> bool:
    return not _EXAMPLE_DOMAIN.search(text)


def _is_card(text: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", text)
    return bool(_CARD_ISSUER.fullmatch(digits)) and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def _is_iban(text: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(text))


_PII = frozenset({"email", "phone", "card", "iban"})
_CHECKED: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _is_email),
    ("iban", _IBAN, _is_iban),
    ("card", _CARD, _is_card),
)


def _mask_phones(text: str, phone_region: str, found: list[str]) -> str:
    if not (_ANY_PHONE if phone_region else _INTERNATIONAL_PHONE).search(text):
        return text
    import phonenumbers

    parts, end = [], 0
    for match in phonenumbers.PhoneNumberMatcher(text, phone_region or None):
        parts += [text[end : match.start], "<phone>"]
        end = match.end
        found.append("phone")
    return "".join([*parts, text[end:]])


def _mask_secrets(text: str, found: list[str]) -> str:
    """Masks what a plugin's own patterns match as a whole: `analyze_string` yields only a part of some tokens.

    It is called nevertheless, because some plugins check more there (a JSON web token must decode). `analyze_line` is not:
    it would ask the issuing service whether the secret is live.
    """
    if not _SECRET_HINT.search(text):
        return text
    alarmed = [plugin for plugin in _secret_plugins() if any(plugin.analyze_string(text))]
    if alarmed:
        text = _PRIVATE_KEY.sub("<secret>", text)
    for plugin in alarmed:
        found.append(plugin.secret_type)
        for pattern in plugin.denylist:
            text = _whole(pattern).sub(_mask_secret, text)
    return text


@cache
def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """The pattern, continued to the end of the token: that of JSON web tokens stops before the signature."""
    return re.compile(rf"(?:{pattern.pattern})(?:(?<=[\w.+/=-])[\w.+/=-]+)?", pattern.flags)


def _mask_secret(match: re.Match[str]) -> str:
    """Some patterns match the white space or quotation mark beside a token, too: those stay."""
    token = match[0].strip(" \t\n\"'")
    return match[0].replace(token, "<secret>", 1)


@cache
def _secret_plugins() -> tuple[_Plugin, ...]:
    from importlib import import_module

    pairs = (name.split(".") for name in _SECRET_PLUGINS)
    return tuple(getattr(import_module(f"detect_secrets.plugins.{module}"), plugin)() for module, plugin in pairs)
