"""Reads the standard library of the running interpreter without importing it: files are parsed, not executed.

Importing would run code (`antigravity` opens a browser, `this` prints a poem) and would tie the corpus to what happens to
be compiled in. Parsing gives names, signatures and docstrings of every module that has a Python source.
"""

import ast
import hashlib
import importlib
import inspect
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from lineage.errors import BadInput

# Folders of the standard library that hold tests, applications or installers: no part of what a programmer imports.
# fmt: off
SKIPPED_FOLDERS = frozenset((
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "ensurepip", "pydoc_data",
    "distutils", "encodings", "tkinter", "lib-dynload", "config", "__pycache__", "__phello__", "pyrepl",
))
# fmt: on
# Modules that act when they are imported or that exist for jokes and experiments.
SKIPPED_MODULES = frozenset(("antigravity", "this", "turtle", "__hello__", "__main__"))

# Modules without a Python source. Importing them runs no Python code, so these few are imported and looked at.
COMPILED_MODULES = ("cmath", "itertools", "math", "time", "zlib")


@dataclass(frozen=True)
class Definition:
    """A public name of a module: `kind` is function or class; `signature` is "(a, b=1)" or "" if there is none."""

    name: str
    kind: str
    signature: str
    doc: str

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring on one line; "" without a docstring."""
        return first_paragraph(self.doc)


@dataclass(frozen=True)
class Module:
    """A public module of the standard library.

    `public_names` is its literal `__all__`, else its public functions and classes, sorted. `definitions` holds the
    functions and classes that its own file defines, public or not. `source` is "" for a compiled module.
    """

    name: str
    doc: str
    source: str
    public_names: tuple[str, ...]
    definitions: dict[str, Definition]


def library_root() -> Path:
    """The folder that holds the standard library's sources."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_paths(root: Path) -> list[Path]:
    """The sources of every public module below a library root, sorted by relative path."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not _is_skipped(name)]  # site-packages holds more than the library itself
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        found += [path for path in paths if _is_public(path.relative_to(root).parts)]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_modules(root: Path) -> dict[str, Module]:
    """Reads every public module below a library root and the compiled ones, by dotted name, sorted by name.

    Raises:
        BadInput: the root holds no sources, or one that cannot be read or parsed.
    """
    modules = [read_compiled(name) for name in COMPILED_MODULES]
    for path in source_paths(root):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(parse_module(name, _read_bytes(path).decode(errors="replace"), path))
    if len(modules) == len(COMPILED_MODULES):
        raise BadInput(root, "", "holds no sources of the standard library", "run a Python that was installed with them")
    return {module.name: module for module in sorted(modules, key=lambda module: module.name)}


def parse_module(name: str, source: str, path: Path) -> Module:
    """Describes a module from its source; `path` is what an error names."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # ValueError: the source holds a null byte
        line = f"line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise BadInput(path, line, "is not valid Python", "reinstall this Python") from None
    definitions = {node.name: _define(node) for node in tree.body if isinstance(node, _DEFINITIONS)}
    listed = _literal_all(tree)
    public = {item for item in (definitions if listed is None else listed) if not item.startswith("_")}
    return Module(name, ast.get_docstring(tree) or "", source, tuple(sorted(public)), definitions)


def read_compiled(name: str) -> Module:
    """Describes a module that has no Python source from the module itself."""
    module = importlib.import_module(name)
    definitions = {}
    for item, value in sorted(vars(module).items()):
        if callable(value) and not item.startswith("_"):
            kind = "class" if inspect.isclass(value) else "function"
            signature = getattr(value, "__text_signature__", None) or ""
            definitions[item] = Definition(item, kind, signature.replace("$module, ", ""), inspect.getdoc(value) or "")
    return Module(name, inspect.getdoc(module) or "", "", tuple(definitions), definitions)


def read_topics(root: Path) -> dict[str, str]:
    """The language reference's chapters that `help()` shows, by topic; empty where the interpreter ships none."""
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(_read_bytes(path)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return dict(sorted(topics.items()))
    return {}


def stdlib_digest() -> str:
    """Identifies the corpus: a sha256 over the interpreter's version and every source's relative path, size and sha256."""
    root = library_root()
    digest = hashlib.sha256(f"{platform.python_implementation()} {sys.version}\n".encode())
    for path in [*source_paths(root), root / "pydoc_data" / "topics.py"]:
        if path.is_file():
            content = _read_bytes(path)
            line = f"{path.relative_to(root).as_posix()} {len(content)} {hashlib.sha256(content).hexdigest()}\n"
            digest.update(line.encode())
    return digest.hexdigest()


def first_paragraph(doc: str) -> str:
    """The first paragraph of a docstring, its lines joined by single spaces."""
    return " ".join(doc.strip().split("\n\n", 1)[0].split())


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            path, "", f"cannot be read ({error.strerror})", "make it readable, or reinstall this Python"
        ) from None


def _is_public(parts: tuple[str, ...]) -> bool:
    folders, stem = parts[:-1], parts[-1].removesuffix(".py")
    if any(_is_skipped(folder) for folder in folders):
        return False
    return stem == "__init__" if stem.startswith("_") else stem not in SKIPPED_MODULES and "test" not in parts


def _is_skipped(folder: str) -> bool:
    return folder in SKIPPED_FOLDERS or folder.startswith(("_", "config-"))


def _literal_all(tree: ast.Module) -> list[str] | None:
    """The strings of every `__all__ = […]` and `__all__ += […]`; None where there is no literal one."""
    names: list[str] | None = None
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.List | ast.Tuple):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "__all__":
                items = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
                names = (names or []) + [item for item in items if isinstance(item, str)]
    return names


def _define(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Definition:
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        initialiser = next(
            (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None
        )
        signature = f"({_arguments(initialiser.args, method=True)})" if initialiser else ""
        return Definition(node.name, "class", signature, doc)
    return Definition(node.name, "function", f"({_arguments(node.args, method=False)})", doc)


def _arguments(arguments: ast.arguments, method: bool) -> str:
    """The argument list without annotations, and without `self` for a method."""
    text = ast.unparse(_without_annotations(arguments))
    return text.partition(", ")[2].removeprefix("/, ") if method else text


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return arguments
