"""Keys, tokens and passwords in formats that only they have.

detect-secrets knows eighteen issuers; the table below adds those that came since. What it finds by guessing from entropy
alone is left out, because that flags test vectors and hashes of honest code: here a name such as `api_key` must stand
before a random value.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from math import log2
from typing import Protocol

from data_contracts.detectors.finding import Finding

_PRIVATE_KEY = re.compile(
    r"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}.*?(?:-{4,5} ?END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}|\Z)",
    re.DOTALL,
)
# A text without any of these cannot match a plugin of `_PLUGINS`: each plugin's formats begin with or contain one.
_PLUGIN_HINT = re.compile(
    r"PRIVATE KEY|PuTTY-User-Key|A3T|AKIA|ABIA|ACCA|ASIA|(?i:aws)|AccountKey=|gh[pousr]_|gl[a-z]{2,9}-|GR1348941|eyJ|"
    r"(?i:xox[abposr]-)|hooks\.slack|[rs]k_live_|SG\.|T3BlbkFJ|sq0csp|-us\d|AKC|AP[\dA-F]|_authToken|pypi-|[MNO][\w-]{23}|"
    r"\d{8}:[\w-]{35}|(?:AC|SK)[a-z0-9]{32}"
)
_PLUGINS = (
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
_FORMATS = {
    "GitHub Token": r"github_pat_[A-Za-z0-9_]{40,}",
    "OpenAI Token": r"sk-(?:proj|svcacct|admin|or-v1)-[\w-]{20,}|sk-[A-Za-z0-9]{40,}",
    "Anthropic Key": r"sk-ant-[\w-]{20,}",
    "Google API Key": r"AIza[\w-]{35}",
    "Google OAuth Token": r"ya29\.[\w-]{20,}|GOCSPX-[\w-]{28}",
    "Hugging Face Token": r"hf_[A-Za-z0-9]{30,}",
    "npm Token": r"npm_[A-Za-z0-9]{36}",
    "DigitalOcean Token": r"do[opr]_v1_[a-f0-9]{64}",
    "Shopify Token": r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}",
    "Databricks Token": r"dapi[a-f0-9]{32}(?:-\d)?",
    "Grafana Token": r"gl(?:sa|c)_[\w+/=]{32,}",
    "Slack Token": r"xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}",
    "Stripe Key": r"[rs]k_test_[A-Za-z0-9]{20,}|whsec_[A-Za-z0-9]{32,}",
    "Square Token": r"sq0atp-[\w-]{22}|EAAA[\w-]{60}",
    "Groq Key": r"gsk_[A-Za-z0-9]{40,}",
    "Replicate Token": r"r8_[A-Za-z0-9]{37}",
    "NVIDIA Key": r"nvapi-[\w-]{60,}",
    "Vault Token": r"hv[sb]\.[\w-]{24,}",
    "age Key": r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
    "SendGrid Key": r"SG\.[\w-]{22}\.[\w-]{43}",
}
_MARKS = (
    "sk-", "github_pat_", "AIza", "ya29.", "GOCSPX-", "hf_", "npm_", "_v1_", "shp", "dapi", "glsa_", "glc_", "xapp-",
    "k_test_", "whsec_", "sq0atp-", "EAAA", "gsk_", "r8_", "nvapi-", "hvs.", "hvb.", "AGE-SECRET", "SG.",
)  # fmt: skip
# https://user:password@host: but for what documentation writes there.
_IN_URL = re.compile(r"[a-z][a-z0-9+]{1,15}://[^\s:/?#@\"'<>]{0,64}:([^\s:/?#@\"'<>]{3,128})@(?=[\w.-])", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[<${%*\[]|x{3,}|pass(?:word|wd|w|code)?\d{0,3}$|pwd$|secret$|token$|your|my|example|changeme|foo|bar|dummy|test",
    re.IGNORECASE,
)
# api_key = "…", with a value that looks drawn by lot.
_ASSIGNED = re.compile(
    r"(?:(?:api|access|auth|private)[_-]?key|secret|token|passw(?:or)?d|pwd|credential|bearer)[\w.-]{0,32}[\"'\]]{0,2}"
    r"\s{0,3}(?:=>|:=|==?|:|\s)\s{0,3}(?:bearer\s)?[\"']?([\w+/.~-]{20,200}={0,2})(?![\w(])",
    re.IGNORECASE,
)
_ASSIGNED_HINT = re.compile(r"key|secret|token|passw|pwd|credential|bearer", re.IGNORECASE)
# Shannon entropy per character; random hexadecimal has at most 4, random base 64 of 40 characters about 4.9.
_MIN_BITS, _MIN_BITS_HEXADECIMAL = 3.6, 3.0


class _Plugin(Protocol):
    secret_type: str
    denylist: Sequence[re.Pattern[str]]

    def analyze_string(self, string: str) -> Iterator[str]: ...


def find_credentials(text: str) -> Iterator[Finding]:
    """Yields keys, tokens and passwords, each as a whole."""
    if _PLUGIN_HINT.search(text):
        yield from _known_to_plugins(text)
    if any(mark in text for mark in _MARKS):
        for match in _formats().finditer(text):
            yield Finding(match.start(), match.end(), "secret", _names()[str(match.lastgroup)])
    if "://" in text and "@" in text:
        for match in _IN_URL.finditer(text):
            if not _PLACEHOLDER.match(match[1]):
                yield Finding(match.start(1), match.end(1), "secret", "Password in a URL")
    if _ASSIGNED_HINT.search(text):
        for match in _ASSIGNED.finditer(text):
            if _is_random(match[1]):
                yield Finding(match.start(1), match.end(1), "secret", "Assigned Secret")


def _known_to_plugins(text: str) -> Iterator[Finding]:
    """Yields what a plugin's own patterns match as a whole: `analyze_string` yields only a part of some tokens.

    It is called nevertheless, because some plugins check more there (a JSON web token must decode). `analyze_line` is not:
    it would ask the issuing service whether the secret is live.
    """
    alarmed = [plugin for plugin in _plugins() if any(plugin.analyze_string(text))]
    for plugin in alarmed:
        if plugin.secret_type == "Private Key":
            for match in _PRIVATE_KEY.finditer(text):
                yield Finding(match.start(), match.end(), "secret", plugin.secret_type)
        for pattern in plugin.denylist:
            for match in _whole(pattern).finditer(text):
                # Some patterns match the white space or quotation mark beside a token, too.
                token = match[0].strip(" \t\n\"'")
                start = match.start() + match[0].index(token)
                yield Finding(start, start + len(token), "secret", plugin.secret_type)


def _is_random(value: str) -> bool:
    """Whether a value looks drawn by lot: digits among letters, and few characters come often. Names and paths do not."""
    core = value.rstrip("=")
    kinds = [any(map(str.isdigit, core)), any(map(str.islower, core)), any(map(str.isupper, core))]
    is_hex = bool(re.fullmatch(r"[a-f0-9]{32,}|[A-F0-9]{32,}", core))
    if not is_hex and (not all(kinds) or re.search(r"[a-z]{10}|[A-Z]{12}", core)):
        return False
    counts = Counter(core)
    bits = -sum(count / len(core) * log2(count / len(core)) for count in counts.values())
    return bits >= (_MIN_BITS_HEXADECIMAL if is_hex else _MIN_BITS)


@cache
def _names() -> dict[str, str]:
    return {f"f{position}": name for position, name in enumerate(_FORMATS)}


@cache
def _formats() -> re.Pattern[str]:
    parts = (f"(?P<f{position}>{layout})" for position, layout in enumerate(_FORMATS.values()))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(parts)})")


@cache
def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """The pattern, continued to the end of the token: that of JSON web tokens stops before the signature."""
    return re.compile(rf"(?:{pattern.pattern})(?:(?<=[\w.+/=-])[\w.+/=-]+)?", pattern.flags)


@cache
def _plugins() -> tuple[_Plugin, ...]:
    pairs = (name.split(".") for name in _PLUGINS)
    return tuple(getattr(import_module(f"detect_secrets.plugins.{module}"), plugin)() for module, plugin in pairs)
