"""`goldpath data diff` and `goldpath data erase`, typed as people would, on real data versions and what grew from them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flows.plan import source_inputs
from flows.release import places
from flows.settings import Settings
from lineage.bundle import seal_bundle
from lineage.job import Job
from lineage.record import read_record
from lineage.stage import StageRun
from serving.release.ledger import Ledger
from serving.release.registry import register
from tests.data_contracts.tiny_corpus import chat, conversations, documents, run_data, sentence, write_corpus, write_lines

MAIL = "jane.doe@goldpath.dev"  # in one document, which is kept with <email>, and in one conversation, which is not


def goldpath(home: Path, *words: str, code: int = 0, said: str = "") -> "subprocess.CompletedProcess[str]":
    """Types a command."""
    command = [sys.executable, "-m", "flows.cli", "data", *words]
    done = subprocess.run(
        command, env=os.environ | {"GOLDPATH_HOME": str(home)}, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def ask(home: Path, *words: str, **more: Any) -> dict[str, Any]:
    """Types a command with --json."""
    view: dict[str, Any] = json.loads(goldpath(home, *words, "--json", **more).stdout)
    return view


def make_data(folder: Path, home: Path, version: str) -> Path:
    """Runs the data stage of a version on the corpus in a folder, as a flow would."""
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"version": version}))
    out = home / "runs" / "tiny" / version / "data"
    done = run_data("--config", recipe, "--out", out, home=home)
    assert done.returncode == 0, done.stderr
    return out


def make_model(home: Path, version: str, stage: str, parents: dict[str, Path]) -> Path:
    """Finishes a training stage whose model is one number, different for each."""
    out = home / "runs" / "tiny" / version / stage
    reads = {"data": ["packed/sft/*"], "base": ["*"]}
    job = Job(name="tiny", version=version, stage=stage, config={}, parents=parents, reads=reads)
    with StageRun(job, out) as run:
        (out / "bundle").mkdir(parents=True)
        save_file({"w": np.array([len(version) + ord(version[0]) + ord(stage[0])])}, out / "bundle" / "model.safetensors")
        (out / "bundle" / "notes.txt").write_text(f"{version} {stage}")
        seal_bundle(out / "bundle")
        run.finish({})
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two data versions, a model of each, a model that grew from the first one's, and a registered one."""
    folder = tmp_path_factory.mktemp("versions")
    home = folder / "home"
    write_corpus(folder)
    first = make_data(folder, home, "1.0.0")
    without = [row for row in documents() if row["id"] not in ("mail", "d0", "exact")]
    write_lines(folder / "pretrain.jsonl", [{"id": "new", "text": sentence("new", 60)}, *without])
    others = [row for row in conversations() if row["id"] != "c-mail"]
    write_lines(
        folder / "sft.jsonl", [others[0], others[1] | {"messages": chat("Where is it?", "Elsewhere.")}, *others[2:]]
    )
    second = make_data(folder, home, "2.0.0")
    sft = make_model(home, "1.0.0", "sft", {"data": first})
    make_model(home, "2.0.0", "sft", {"data": second})
    make_model(home, "3.0.0", "dpo", {"data": second, "base": sft / "bundle"})
    settings = Settings(home=home)
    ledger = Ledger(settings.ledger)
    register(ledger, places(settings), "tiny", "1.0.0", sft, "ada", waiver="a test")
    ledger.close()
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path / "home", symlinks=True)
    for record in (tmp_path / "home" / "runs").rglob("record.json"):
        assert read_record(record.parent)
    return tmp_path / "home"


def test_two_versions_are_compared(made: Path, tmp_path: Path) -> None:
    found = ask(made, "diff", "tiny@1.0.0", "tiny@2.0.0", "--html", str(tmp_path / "diff.html"))
    assert not found["identical"]
    rows = found["kinds"]["pretrain"]["rows"]
    assert (rows["added"], rows["removed"], rows["changed"]) == (1, 2, 0)
    assert found["kinds"]["pretrain"]["samples"] == {"changed": [], "added": ["new"], "removed": ["d0", "mail"]}
    assert found["kinds"]["sft"]["rows"]["changed"] == 1
    assert found["kinds"]["sft"]["samples"]["changed"] == ["c1"]
    assert found["kinds"]["preference"]["rows"]["unchanged"] == 10
    for kind in found["kinds"].values():
        counts = kind["rows"]
        assert counts["unchanged"] + counts["changed"] + counts["removed"] == kind["funnel"]["kept"][0]
        assert counts["unchanged"] + counts["changed"] + counts["added"] == kind["funnel"]["kept"][1]
    assert found["rules"]["personal_data.personal_data"] == [1, 0]
    assert found["contracts"]["sft"]["roles"]["broken"] == [1, 1]
    assert all(golden["same"] for golden in found["golden"].values())
    assert 0 < found["kinds"]["pretrain"]["lengths"]["p"] <= 1
    page = (tmp_path / "diff.html").read_text()
    assert page.count("<svg") >= 9
    assert not any(foreign in page for foreign in ("<script", "http://www.example", "<link", "<img"))
    text = goldpath(made, "diff", "tiny@1.0.0", "tiny@2.0.0").stdout
    assert "Golden sets" in text
    assert "KS" in text


def test_a_version_that_is_not_at_hand_is_restored_and_equals_its_folder(home: Path) -> None:
    moved = home / "elsewhere"
    shutil.move(home / "runs" / "tiny" / "1.0.0" / "data", moved)
    found = ask(home, "diff", "tiny@1.0.0", str(moved))
    assert found["identical"]
    assert not list(home.glob(".restored-*"))
    assert "the very same files" in goldpath(home, "diff", str(moved), str(moved)).stdout


def spoil_a_row(home: Path) -> None:
    path = home / "runs" / "tiny" / "1.0.0" / "data" / "rows" / "sft" / "train.jsonl"
    path.write_text(path.read_text().replace("house", "hause", 1))


def spoil_the_store(home: Path) -> None:
    shutil.rmtree(home / "runs" / "tiny" / "1.0.0" / "data")
    wanted = (home / "runs" / "tiny" / "2.0.0" / "data" / "rows" / "preference" / "train.jsonl").read_bytes()
    for store in ("cache", "remote"):
        for path in (home / "dvc" / store).rglob("*"):
            if path.is_file() and path.read_bytes() == wanted:
                path.chmod(0o644)
                path.write_bytes(wanted.replace(b"house", b"hause", 1))


@pytest.mark.parametrize("spoil", [spoil_a_row, spoil_the_store])
def test_what_was_spoilt_is_refused_and_named(home: Path, spoil: Callable[[Path], None]) -> None:
    spoil(home)
    error = goldpath(home, "diff", "tiny@1.0.0", "tiny@2.0.0", code=2).stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "train.jsonl" in error


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("tiny@9", "tiny@9: is no data version here"),
        ("nowhere", "nowhere: is neither a folder nor NAME@VERSION"),
        ("Tiny@@", "is not of the form NAME@VERSION"),
        (".", "holds no data version"),
    ],
)
def test_what_there_is_not_is_bad_input(made: Path, where: str, said: str) -> None:
    assert said in goldpath(made, "diff", where, "tiny@1.0.0", code=2).stderr


def test_a_dry_run_lists_what_holds_a_person_and_writes_nothing(home: Path) -> None:
    before = {path for path in home.rglob("*") if ".restored" not in path.name}
    found = ask(home, "erase", "--match", MAIL, "--reason", "asked", "--dry-run")
    assert (found["erased"], found["by"]) == (False, "subject")
    assert [(row["addresses"], row["rows"], row["kept"]) for row in found["versions"]] == [(["tiny@1.0.0"], 2, 1)]
    assert {(row["address"], row["stage"]) for row in found["records"]} == {
        ("tiny@1.0.0", "data"),
        ("tiny@1.0.0", "sft"),
        ("tiny@3.0.0", "dpo"),  # it grew from a model that had read the rows
    }
    models = {tuple(row["made_by"]): row["registered"] for row in found["models"]}
    assert models == {("tiny@1.0.0 sft",): {"tiny@1.0.0": "registered"}, ("tiny@3.0.0 dpo",): {}}
    assert {path for path in home.rglob("*") if ".restored" not in path.name} == before


def test_an_erased_person_is_in_no_version_to_come(home: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    found = ask(home, "erase", "--match", "-", "--reason", "asked for it", "--yes", said=f"{MAIL}\n")
    assert found["erased"]
    assert found["new"]
    kept = (home / "erasures.jsonl").read_text()
    assert "jane" not in kept.lower()
    assert json.loads(kept)["reason"] == "asked for it"
    out = make_data(tmp_path, home, "4.0.0")
    for path in out.rglob("*"):
        assert not path.is_file() or b"jane.doe" not in path.read_bytes(), path
    funnel = json.loads((out / "funnel.json").read_text())["kinds"]
    for kind, erased in (("pretrain", 1), ("sft", 1), ("preference", 0)):
        counts = funnel[kind]
        assert counts["erased"] == erased
        gone = sum(counts[outcome] for outcome in ("quarantined", "duplicates", "contaminated", "erased"))
        assert counts["rows_in"] == counts["kept"] + gone
    assert len((out / "erased.jsonl").read_text().splitlines()) == 2
    record = read_record(out)
    assert "erasures" in record.inputs
    assert record.metrics["erased"] == 2
    job = Job(name="tiny", version="5.0.0", stage="data", config=record.config)
    assert source_inputs(job, Settings(home=home)) == record.inputs  # what a plan compares
    again = run_data("--config", tmp_path / "recipe.json", "--out", tmp_path / "again", home=home)
    assert again.returncode == 0, again.stderr
    assert read_record(tmp_path / "again").outputs == record.outputs

    repeated = ask(home, "erase", "--match", MAIL, "--reason", "asked again", "--yes")
    assert not repeated["new"]
    assert [row["addresses"] for row in repeated["versions"]] == [["tiny@1.0.0"]]
    recipe = json.loads((tmp_path / "recipe.json").read_text()) | {"version": "1.0.0"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    finished = run_data("--config", tmp_path / "recipe.json", "--out", home / "runs/tiny/1.0.0/data", home=home)
    assert finished.returncode == 2  # a finished version never changes: the erasure needs a new one
    assert "choose a new `version:`" in finished.stderr


def test_what_it_is_is_found_out_or_asked(home: Path) -> None:
    def way(*words: str) -> tuple[str, int]:
        found = ask(home, "erase", *words, "--reason", "asked", "--dry-run")
        return found["by"], sum(row["rows"] for row in found["versions"])

    assert ask(home, "erase", "--match", "sft:3", "--by", "id", "--reason", "asked", "--dry-run")["warning"]
    assert way("--match", "c-mail") == ("id", 1)
    assert way("--match", "pretrain:mail") == ("id", 1)
    assert way("--match", "In the river house.") == ("text", 4)  # c0 and its duplicate, in both versions
    assert way("--match", "the river house") == ("subject", 12)
    assert way("--match", "somebody@unknown.org") == ("subject", 0)
    assert way("--match", "river", "--by", "subject")[0] == "subject"
    error = goldpath(home, "erase", "--match", "Nobody Known", "--reason", "asked", "--dry-run", code=2).stderr
    assert "add `--by id|text|subject`" in error


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_is_erased(home: Path, answer: str) -> None:
    done = goldpath(home, "erase", "--match", MAIL, "--reason", "asked", code=1, said=answer)
    assert "error: not confirmed, so nothing was erased" in done.stderr
    assert not (home / "erasures.jsonl").exists()
    goldpath(home, "erase", "--match", MAIL, "--reason", "asked", said="y\n")
    assert (home / "erasures.jsonl").exists()


@pytest.mark.parametrize("reason", [" ", f"{MAIL} wrote to us"])
def test_a_reason_must_be_one_and_must_not_repeat_the_match(home: Path, reason: str) -> None:
    error = goldpath(home, "erase", "--match", MAIL, "--reason", reason, "--yes", code=2).stderr
    assert error.startswith("error: --reason: ")
    assert not (home / "erasures.jsonl").exists()


def test_a_version_that_cannot_be_looked_into_is_told(home: Path) -> None:
    spoil_a_row(home)
    found = ask(home, "erase", "--match", MAIL, "--reason", "asked", "--yes", code=1)
    assert found["erased"]
    assert "was changed after its record was written" in found["versions"][0]["problem"]
