"""What the standard library's sources say, read without importing them."""

from pathlib import Path

import pytest

from data_contracts.stdlib.documents import LONGEST_DOCUMENT, describe_definition, split_text
from data_contracts.stdlib.facts import find_facts, find_homes
from data_contracts.stdlib.modules import Module, first_paragraph, parse_module, read_compiled, read_modules, source_paths
from lineage.errors import BadInput

SOURCE = '''"""Cooking. In a pot."""
__all__ = ["Pot", "boil"]
__all__ += ["TIME"]
TIME = 3
class Pot:
    """Holds
    soup.

    More."""
    def __init__(self, size: int, *, lid=True) -> None: ...
def boil(water: str, minutes: int = 3) -> None:
    "Heats water."
def spill(): ...
raise RuntimeError("a parser does not run this")
'''


def parse(name: str, source: str) -> Module:
    return parse_module(name, source, Path(f"{name}.py"))


def test_a_module_is_parsed_and_not_executed() -> None:
    module = parse("cooking", SOURCE)
    assert module.doc == "Cooking. In a pot."
    assert module.public_names == ("Pot", "TIME", "boil")
    assert module.definitions["Pot"].kind == "class"
    assert module.definitions["Pot"].signature == "(size, *, lid=True)"
    assert module.definitions["Pot"].summary == "Holds soup."
    assert module.definitions["boil"].signature == "(water, minutes=3)"


def test_a_module_without_all_offers_its_public_definitions() -> None:
    module = parse("pan", "def fry(): ...\ndef _burn(): ...\nfrom os import path")
    assert module.public_names == ("fry",)


def test_a_computed_all_is_read_as_far_as_it_is_literal() -> None:
    assert parse("pan", "__all__ = ['fry']\n__all__ += other()\ndef stir(): ...").public_names == ("fry",)
    assert parse("pan", "__all__ = [n for n in x]\ndef stir(): ...").public_names == ("stir",)


def test_ambiguous_names_builtins_and_private_names_have_no_home() -> None:
    modules = {
        name: parse(name, source)
        for name, source in {
            "pan": "def fry(): ...\ndef open(): ...\ndef shared(): ...",
            "pot": "def boil(): ...\ndef shared(): ...\ndef _hidden(): ...",
        }.items()
    }
    assert {name: home for name, (home, _) in find_homes(modules).items()} == {"fry": "pan", "boil": "pot"}


def test_a_package_is_the_home_of_what_it_takes_from_its_submodule() -> None:
    modules = {
        "kitchen": parse("kitchen", "from kitchen.oven import Oven\n__all__ = ['Oven']"),
        "kitchen.oven": parse("kitchen.oven", "class Oven:\n    'Bakes.'"),
    }
    home, definition = find_homes(modules)["Oven"]
    assert home == "kitchen"
    assert definition.summary == "Bakes."


def test_facts_are_spread_over_modules_and_famous_names_come_first() -> None:
    modules = {
        "json": parse("json", "def rare(): ...\ndef famous(): ...\ndef other(): ..."),
        "heapq": parse("heapq", "def push(): ...\n# json.famous json.famous json.other"),
    }
    facts = find_facts(modules, 2, seed=0)
    assert [(fact.module, fact.name) for fact in facts] == [("heapq", "push"), ("json", "famous")]
    assert len(find_facts(modules, 99, seed=0)) == 4


def test_tests_private_modules_and_site_packages_are_no_part_of_the_library(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "p/__init__.py",
        "p/b.py",
        "p/_c.py",
        "test/d.py",
        "site-packages/e.py",
        "_f.py",
        "antigravity.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    assert [path.relative_to(tmp_path).as_posix() for path in source_paths(tmp_path)] == ["a.py", "p/__init__.py", "p/b.py"]
    assert {"a", "p", "p.b"} <= set(read_modules(tmp_path))


def test_a_compiled_module_is_described_by_itself() -> None:
    module = read_compiled("math")
    assert module.definitions["sqrt"].signature == "(x, /)"
    assert module.definitions["sqrt"].summary == "Return the square root of x."
    assert "pi" not in module.public_names


def test_documents_are_short_and_split_at_line_ends() -> None:
    text = "\n".join(f"line {i} has a few words" for i in range(500))
    parts = split_text(text)
    assert max(map(len, parts)) <= LONGEST_DOCUMENT
    assert "\n".join(parts) == text
    assert split_text("too short") == []


def test_an_api_page_names_module_and_signature() -> None:
    page = describe_definition("cooking", parse("cooking", SOURCE).definitions["boil"])
    assert page == "`boil` is a function of the module `cooking`.\n\nboil(water, minutes=3)\n\nHeats water."


def test_a_first_paragraph_is_one_line() -> None:
    assert first_paragraph("\n One\n  two.\n\nThree.") == "One two."


def test_a_library_without_sources_and_a_broken_source_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no sources"):
        read_modules(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(BadInput, match=r"broken\.py: line 2: is not valid Python"):
        read_modules(tmp_path)
