"""Facts of the standard library that a question can ask: which module defines a name, its signature, its summary."""

import builtins
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from data_contracts.stdlib.modules import Definition, Module

# Modules that a Python programmer has met. Facts come from these, so that the assistant is asked what people ask.
# fmt: off
WELL_KNOWN = (
    "abc", "argparse", "ast", "base64", "bisect", "calendar", "codecs", "collections", "concurrent.futures",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest",
    "email.utils", "enum", "fnmatch", "fractions", "functools", "getopt", "getpass", "gettext", "glob", "gzip", "hashlib",
    "heapq", "hmac", "html", "html.parser", "http.client", "http.cookies", "http.server", "importlib.util", "inspect",
    "io", "ipaddress", "itertools", "json", "linecache", "locale", "logging", "logging.handlers", "math", "mimetypes",
    "multiprocessing", "operator", "os", "pathlib", "pdb", "pickle", "pickletools", "platform", "pprint", "pstats",
    "pydoc", "queue", "random", "re", "runpy", "secrets", "selectors", "shlex", "shutil", "signal", "smtplib", "socket",
    "socketserver", "ssl", "statistics", "string", "struct", "subprocess", "symtable", "sysconfig", "tarfile", "tempfile",
    "textwrap", "threading", "time", "timeit", "tokenize", "traceback", "tracemalloc", "types", "typing", "unittest",
    "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.dom.minidom",
    "xml.etree.ElementTree", "xml.sax.handler", "zipfile", "zlib",
)
# fmt: on
# Whole modules that no training row may quote: the held-out documents are theirs.
# fmt: off
HELD_OUT = (
    "cmd", "colorsys", "compileall", "filecmp", "fileinput", "ftplib", "graphlib", "mailbox", "modulefinder", "netrc",
    "optparse", "plistlib", "poplib", "pyclbr", "quopri", "rlcompleter", "sched", "shelve", "tabnanny", "trace", "wave",
    "xmlrpc.client", "zipapp",
)
# fmt: on

_DOTTED = re.compile(r"\w+(?:\.\w+)+")


@dataclass(frozen=True)
class Fact:
    """A public name and the one module that offers it."""

    name: str
    module: str
    definition: Definition


def find_facts(modules: Mapping[str, Module], limit: int, seed: int) -> list[Fact]:
    """Chooses unambiguous names of well-known modules, spread evenly over the modules.

    A name that several modules offer, or that the language itself has (`open`), is dropped: its question has no one answer.
    Within a module, names that the library's sources mention most often as `module.name` come first; ties are shuffled with
    the seed. The order of the result is that of modules and names.
    """
    homes = find_homes(modules)
    mentions = Counter(word for module in modules.values() for word in _DOTTED.findall(module.source))
    queues = []
    for module_name in WELL_KNOWN:
        facts = [
            Fact(name, module_name, definition)
            for name, (home, definition) in homes.items()
            if home == module_name and len(name) > 2 and name not in modules and not name.isupper()
        ]
        random.Random(f"{seed} {module_name}").shuffle(facts)
        facts.sort(key=lambda fact: -mentions[f"{fact.module}.{fact.name}"])
        queues.append(facts)
    chosen: list[Fact] = []
    while len(chosen) < limit and any(queues):  # one name of each module in turn, so that no module dominates
        chosen += [queue.pop(0) for queue in queues if queue][: limit - len(chosen)]
    return sorted(chosen, key=lambda fact: (fact.module, fact.name))


def find_homes(modules: Mapping[str, Module]) -> dict[str, tuple[str, Definition]]:
    """The one module and the definition of every name that exactly one module offers and that is no builtin.

    A package that re-exports a submodule's name (`json.JSONDecoder` of `json.decoder`) is that name's home.
    """
    offers: dict[str, set[str]] = {}
    for module in modules.values():
        for name in module.public_names:
            offers.setdefault(name, set()).add(module.name)
    homes = {}
    for name, offering in sorted(offers.items()):
        tops = [module for module in offering if not any(module.startswith(f"{other}.") for other in offering)]
        definitions = [
            modules[module].definitions[name] for module in sorted(offering) if name in modules[module].definitions
        ]
        if len(tops) == 1 and definitions and not hasattr(builtins, name):
            homes[name] = (tops[0], definitions[0])
    return homes
