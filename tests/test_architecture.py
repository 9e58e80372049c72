"""The house rules as tests: who may import whom, what stays light and small, and that the README's map is true."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("lineage", "data_contracts", "training", "evaluation", "serving", "flows")
HEAVY = {
    "accelerate",
    "datasets",
    "deepspeed",
    "dvc",
    "great_expectations",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "numpy",
    "pandas",
    "peft",
    "prefect",
    "scipy",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
}
MAX_LINES = 330
# Names that say nothing about what a file does.
EMPTY_NAMES = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "manager.py"}


def python_files(*folders: str) -> list[Path]:
    """Every Python file below the folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_roots(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    program = (
        f"import json, sys\ntry:\n    {statement}\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_contracts_hold() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_only_flows_know_prefect() -> None:
    guilty = [path for path in python_files(*ROOMS) if path.relative_to(ROOT).parts[0] != "flows"]
    assert [path for path in guilty if "prefect" in imported_roots(path)] == []


def test_rooms_do_not_import_tests_or_infra() -> None:
    assert [path for path in python_files(*ROOMS) if imported_roots(path) & {"tests", "infra", "benchmarks"}] == []


def test_help_imports_nothing_heavy() -> None:
    assert modules_after("from flows.cli import cli; cli.main(['--help'])") & HEAVY == set()


@pytest.mark.parametrize("room", ["data_contracts", "training", "evaluation", "serving"])
def test_a_stage_s_help_and_config_import_nothing_heavy(room: str) -> None:
    assert modules_after(f"import {room}.config") & HEAVY == set()
    show_help = f"import runpy; sys.argv = ['{room}', '--help']; runpy.run_module('{room}', run_name='__main__')"
    assert modules_after(show_help) & HEAVY == set()


def test_help_costs_at_most_three_tenths_of_a_second() -> None:
    """Processor time, so that a busy machine does not decide; the best of five."""
    program = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
    program += "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    command = [sys.executable, "-c", program, sys.executable, "-m", "flows.cli", "--help"]
    seconds = [float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout) for _ in range(5)]
    assert min(seconds) <= 0.3


def test_files_stay_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*ROOMS, "tests")}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MAX_LINES} == {}


def test_files_are_named_after_what_they_do() -> None:
    named_badly = [
        path
        for path in python_files(*ROOMS, "tests")
        if path.name in EMPTY_NAMES or re.search(r"_(v\d|old|legacy)\.py$", path.name)
    ]
    assert named_badly == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files(*ROOMS)
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_readme_s_tree_is_true() -> None:
    listed = tree_of((ROOT / "README.md").read_text(encoding="utf-8"))
    if listed is None:
        pytest.skip("README.md has no ```tree block")
    assert [name for name in listed if not (ROOT / name).exists()] == []
    files = {path.relative_to(ROOT).as_posix() for path in python_files(*ROOMS) if path.name != "__init__.py"}
    assert sorted(files - {name.rstrip("/") for name in listed}) == []


def tree_of(readme: str) -> list[str] | None:
    """The paths in a README's ```tree block: one name a line, nested by indentation or by tree glyphs."""
    block = re.search(r"^```tree\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    if block is None:
        return None
    listed: list[str] = []
    above: list[tuple[int, PurePosixPath]] = []
    for line in filter(str.strip, block[1].splitlines()):
        rest = line.lstrip(" │├└─\N{NO-BREAK SPACE}")
        depth = len(line) - len(rest)
        name = rest.split()[0]
        if name in (".", "./", "goldpath/"):
            continue
        above = [(level, path) for level, path in above if level < depth]
        path = (above[-1][1] if above else PurePosixPath()) / name
        if name.endswith("/"):
            above.append((depth, path))
        listed.append(str(path))
    return listed


@pytest.mark.parametrize(
    "tree",
    [
        "lineage/      the leaf\n  section.py  strict\nflows/\n  cli.py  commands\nMakefile\n",
        "├── lineage/  the leaf\n│   └── section.py\n├── flows/\n│   └── cli.py  commands\n└── Makefile\n",
    ],
)
def test_the_tree_reader_reads_trees(tree: str) -> None:
    listed = ["lineage", "lineage/section.py", "flows", "flows/cli.py", "Makefile"]
    assert tree_of(f"# x\n```tree\n{tree}```\n") == listed
    assert tree_of(f"# x\n```\n{tree}```\n") is None
