"""E-mail and IP addresses that belong to somebody."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import chain

from data_contracts.detectors.finding import Finding

# RFC 6761: names of no network.
_LOCAL_DOMAIN = re.compile(r"[@.\s](?:test|invalid|localhost)$", re.IGNORECASE)
# RFC 2606: these domains belong to nobody. `user@example.com` is documentation; `jane.miller82@example.org` stands for a
# person in data that was made up or made anonymous, and is treated as one.
_EXAMPLE_DOMAIN = re.compile(r"[@.\s]example(?:\.(?:com|org|net|edu))?$", re.IGNORECASE)
_NO_PERSON = re.compile(
    r".{0,2}|foo|bar|baz|(?:the|your|my|some|any|first|last|no)[._-]\w+|noreply|(?:your|some|any)[a-z]+|"
    r"(?:john|jane|alice|bob|first|last|given|user|your)(?:[._-]?(?:doe|smith|name|user|last|surname))?|"
    r"(?:user|username|name|admin|info|e?mail|test|root|nobody|person|people|support|help|contact|sales|webmaster|postmaster|"
    r"hostmaster|abuse|owner|author|sender|recipient|from|list|office|team|spam|guest|dev|account|address|example|member|"
    r"customer|client)[._+-]?\w{0,4}",
    re.IGNORECASE,
)
_LABEL = r"[A-Za-z0-9À-ɏ-]{1,63}"
_LOCAL = re.compile(r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9À-ɏ][\w.+'-]{0,63}$")
_AT_DOMAIN = re.compile(rf"@(?:{_LABEL}\.)+[A-Za-z]{{2,24}}(?![\w-])")
# jane [at] doe [dot] org
_DOT = r"(?:\.|\s?[\[(]\s?(?:dot|DOT)\s?[\])]\s?)"
_AT_DOMAIN_SPELT = re.compile(rf"[\[(]\s?(?:at|AT)[\])]\s?(?:{_LABEL}{_DOT})+[A-Za-z]{{2,24}}(?![\w-])")
# `git@host:path` is how a repository is addressed, and one user of all.
_SERVICES = frozenset({"git", "hg", "svn"})

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<![A-Za-z_]-)(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\w|-[A-Za-z])", re.ASCII)
_IPV6 = re.compile(r"(?:(?<![\w:.])|(?<=[g-z]:))[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE | re.ASCII)
# What stands before four numbers that are a version or a section.
_VERSION = re.compile(
    r"(?:\b(?:version|release[sd]?|ver\.?|revision|build|v|section|sec\.?|chapter|clause)|[<>~^!=]=|\s[<>]|[~^§])\W{0,3}$|"
    r"\b(?-i:[A-Z][A-Za-z]*/)$",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?:ip|ipv4|addr|address|host|server|client|from|at|peer|remote|node|ping)\W{0,4}$|://$", re.I)
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # what IANA has given out
_DOCUMENTATION = (IPv6Network("2001:db8::/32"), IPv6Network("3fff::/20"))  # RFC 3849, RFC 9637
# Resolvers that the whole world asks, and what documentation counts up.
_NOBODYS = frozenset({
    "8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112", "208.67.222.222", "208.67.220.220",
    "2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111", "2606:4700:4700::1001", "2620:fe::fe",
    "1.2.3.4", "123.45.67.89", "123.123.123.123",
})  # fmt: skip


def find_emails(text: str) -> Iterator[Finding]:
    """Yields e-mail addresses, also with `[at]` and `[dot]`; generic ones of example domains are nobody's."""
    domains = _AT_DOMAIN.finditer(text) if "@" in text else ()
    may_be_spelt = "at]" in text or "at)" in text or "AT]" in text or "AT)" in text
    spelt = _AT_DOMAIN_SPELT.finditer(text) if may_be_spelt else ()
    for domain in chain(domains, spelt):
        end = domain.start() - (domain[0][0] != "@" and text.endswith(" ", 0, domain.start()))
        local = _LOCAL.search(text, max(0, end - 64), end)
        if local and _is_somebody(local[0], re.sub(_DOT, ".", domain[0])):
            yield Finding(local.start(), domain.end(), "email", "email")


def _is_somebody(local: str, domain: str) -> bool:
    if local.lower() in _SERVICES or _LOCAL_DOMAIN.search(domain):
        return False
    return not (_EXAMPLE_DOMAIN.search(domain) and _NO_PERSON.fullmatch(local))


def find_ips(text: str) -> Iterator[Finding]:
    """Yields public addresses. Private, loopback, link-local and documentation ranges and public resolvers are nobody's."""
    for match in _IPV4.finditer(text):
        if _is_public_v4(match[0]) and not _is_version(text, match):
            yield Finding(match.start(), match.end(), "ip", "IPv4 address")
    for match in _IPV6.finditer(text):
        if _is_public_v6(match[0]):
            yield Finding(match.start(), match.end(), "ip", "IPv6 address")


def _is_public_v4(text: str) -> bool:
    address = IPv4Address(text)
    return address.is_global and not address.is_multicast and text not in _NOBODYS


def _is_version(text: str, match: re.Match[str]) -> bool:
    """Whether four numbers count releases: a word says so, or they are as small as those are and no word says what else."""
    before = text[max(0, match.start() - 16) : match.start()]
    return bool(_VERSION.search(before)) or (len(match[0]) < 9 and not _HOST.search(before))


def _is_public_v6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except ValueError:
        return False
    if any(address in network for network in _DOCUMENTATION) or str(address) in _NOBODYS:
        return False
    if address.is_private or address.is_link_local or address.is_loopback or address.is_multicast:
        return False
    # `x[3000::2]` is a slice, and eight small numbers are a list.
    if "::" in text:
        return address in _GLOBAL_UNICAST and text.count(":") > 2
    return address in _GLOBAL_UNICAST or len(text) > 24
