"""The two stages as commands: scores, verdicts, reports, and what they refuse."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.__main__ import run_evaluate, run_gate
from lineage.bundle import seal_bundle
from lineage.errors import BadInput, Tampered

WriteJob = Callable[..., Path]
RULE = {"metric": "closed_book.exact_match", "direction": "higher", "margin": 0.05}
CHOICE = {"metric": "choice.accuracy", "direction": "higher", "margin": 0.2, "floor": 0.5}


@pytest.fixture(scope="module")
def evaluations(bundles: dict[str, Path], golden_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluate folder per model, each with that model as its candidate and the untrained one beside it."""
    root = tmp_path_factory.mktemp("evaluations")
    for name in ("trained", "halfway", "untrained"):
        parents = {"data": golden_data, "untrained": bundles["untrained"], "candidate": bundles[name]}
        job = {"name": "tiny", "version": name, "stage": "evaluate", "config": {}}
        path = root / f"{name}.yaml"
        path.write_text(json.dumps({**job, "parents": {role: str(where) for role, where in parents.items()}}))
        run_evaluate(path, root / name)
    return {name: root / name for name in ("trained", "halfway", "untrained")}


def test_scores_and_samples(evaluations: dict[str, Path], bundles: dict[str, Path]) -> None:
    scores = json.loads((evaluations["trained"] / "scores.json").read_text())
    assert list(scores["models"]) == ["untrained", "candidate"]
    candidate = scores["models"]["candidate"]
    assert candidate["digest"].startswith("sha256:")
    names = ["closed_book.exact_match", "choice.accuracy", "heldout.bits_per_byte", "format.match"]
    assert list(candidate["metrics"]) == names
    exact = candidate["metrics"]["closed_book.exact_match"]
    assert exact["n"] == 80
    assert exact["low"] <= exact["value"] <= exact["high"]
    assert exact["value"] > 0.9
    assert scores["models"]["untrained"]["metrics"]["closed_book.exact_match"]["value"] < 0.1
    rows = [json.loads(line) for line in (evaluations["trained"] / "samples/candidate.jsonl").read_text().splitlines()]
    first = rows[0]
    assert (first["task"], first["metric"], first["group"]) == ("closed_book", "exact_match", "name0")
    assert (first["answer"], first["expected"], first["score"]) == ("os", "os", 1.0)


def test_finished_stage_is_reused(evaluations: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluations["trained"]
    before = (folder / "record.json").read_bytes()
    run_evaluate(folder.parent / "trained.yaml", folder)
    assert "already finished" in capsys.readouterr().err
    assert (folder / "record.json").read_bytes() == before


def test_same_bundle_twice_is_scored_once(
    write_job: WriteJob, bundles: dict[str, Path], golden_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parents = {"data": golden_data, "sft": bundles["trained"], "candidate": bundles["trained"]}
    run_evaluate(write_job("evaluate", {}, parents), tmp_path / "out")
    assert "evaluate: candidate: these very bytes were scored before" in capsys.readouterr().err
    sft, candidate = ((tmp_path / f"out/samples/{label}.jsonl").read_bytes() for label in ("sft", "candidate"))
    assert sft == candidate


def test_cache_is_used_and_a_changed_one_is_not(
    write_job: WriteJob,
    bundles: dict[str, Path],
    golden_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GOLDPATH_HOME", str(tmp_path / "home"))
    parents = {"data": golden_data, "candidate": bundles["trained"]}
    job = write_job("evaluate", {}, parents, resources={"reuse_samples": True})

    def is_reused(path: Path, name: str) -> bool:
        run_evaluate(path, tmp_path / name)
        return "reused" in capsys.readouterr().err

    assert not is_reused(job, "first")
    assert is_reused(job, "second")
    assert not is_reused(write_job("evaluate", {}, parents), "asked-again")
    (kept,) = (tmp_path / "home/cache/samples").iterdir()
    kept.write_text(kept.read_text().replace('"score": 1.0', '"score": 0.0', 1))
    assert not is_reused(job, "changed")
    assert not is_reused(write_job("evaluate", {"batch_size": 8}, parents, resources={"reuse_samples": True}), "other")
    for name in ("second", "asked-again", "changed"):
        assert (tmp_path / name / "scores.json").read_bytes() == (tmp_path / "first/scores.json").read_bytes()


def test_own_suite_asks_only_its_tasks(
    write_job: WriteJob, bundles: dict[str, Path], golden_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntasks: [choice]\n")
    job = write_job(
        "evaluate", {"suite": str(tmp_path / "mine.yaml")}, {"data": golden_data, "candidate": bundles["trained"]}
    )
    record = run_evaluate(job, tmp_path / "out")
    assert list(record.metrics) == ["choice.accuracy"]
    assert json.loads((tmp_path / "out/scores.json").read_text())["suite"] == "mine"
    assert "suite/mine.yaml" in record.inputs


def test_gate_against_champion_passes_and_fails(write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path) -> None:
    policy = {"metrics": [{**RULE, "margin": 0.2}, CHOICE], "minimum_items": 20}
    good, bad = evaluations["trained"], evaluations["untrained"]
    better = run_gate(write_job("gate", policy, {"candidate": good, "champion": bad}), tmp_path / "better")
    assert better.metrics["verdict"] == "pass"
    worse = run_gate(write_job("gate", policy, {"candidate": bad, "champion": good}), tmp_path / "worse")
    assert worse.metrics["verdict"] == "fail"
    verdict = json.loads((tmp_path / "worse/verdict.json").read_text())
    assert verdict["against"] == "tiny@trained"
    assert "closed_book.exact_match" in verdict["reasons"][0]
    report = json.loads((tmp_path / "worse/report.json").read_text())
    assert len(report["regressions"]["closed_book.exact_match"]) == 12
    row = report["regressions"]["closed_book.exact_match"][0]
    assert row["champion"]["answer"] == row["expected"] != row["candidate"]["answer"]


def test_gate_without_champion_needs_its_floors(write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path) -> None:
    parents = {"candidate": evaluations["trained"]}
    passing = run_gate(write_job("gate", {"metrics": [CHOICE]}, parents), tmp_path / "pass")
    assert passing.metrics["verdict"] == "pass"
    with pytest.raises(BadInput, match="nothing would be checked"):
        run_gate(write_job("gate", {"metrics": [RULE]}, parents), tmp_path / "none")
    assert not (tmp_path / "none/record.json").exists()


def test_report_is_self_contained(write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path) -> None:
    parents = {"candidate": evaluations["halfway"], "champion": evaluations["trained"]}
    run_gate(write_job("gate", {"metrics": [RULE, CHOICE]}, parents), tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 5  # the forest, and one chart of scores per metric
    assert "prefers-color-scheme: dark" in page
    for outside in ("http://", "https://", "src=", "@import", "<link", "<script"):
        assert outside not in page
    assert "&lt;|user|&gt;" in page  # prompts are shown, escaped
    assert "<|user|>" not in page


def test_command_line(write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path) -> None:
    job = write_job("gate", {"metrics": [CHOICE]}, {"candidate": evaluations["untrained"]})
    command = [sys.executable, "-m", "evaluation", "--config", str(job), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second time the verdict is read from the record
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["stage"] == "gate"
        assert said["metrics"]["verdict"] == "fail"
    assert (tmp_path / "out/record.json").is_file()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['evaluation', '--help']\n"
        "try: runpy.run_module('evaluation', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'scipy', 'numpy'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_tampered_bundle_is_refused(
    write_job: WriteJob, bundles: dict[str, Path], golden_data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundles["trained"], tmp_path / "bundle")
    weights = copy / "model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    parents = {"data": golden_data, "candidate": copy}
    with pytest.raises(Tampered, match=r"model\.safetensors: was changed"):
        run_evaluate(write_job("evaluate", {}, parents), tmp_path / "out")


def test_diverged_model_is_scored_but_never_passes(
    write_job: WriteJob, bundles: dict[str, Path], golden_data: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    broken = shutil.copytree(bundles["trained"], tmp_path / "bundle")
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    seal_bundle(broken)
    run_evaluate(write_job("evaluate", {}, {"data": golden_data, "candidate": broken}), tmp_path / "out")
    scores = json.loads((tmp_path / "out/scores.json").read_text())["models"]["candidate"]["metrics"]
    assert scores["heldout.bits_per_byte"]["value"] is None
    assert scores["choice.accuracy"]["value"] is None
    rule = {"metric": "heldout.bits_per_byte", "direction": "lower", "floor": 100.0, "margin": 10.0}
    record = run_gate(write_job("gate", {"metrics": [rule]}, {"candidate": tmp_path / "out"}), tmp_path / "gate")
    assert record.metrics["verdict"] == "fail"
    assert "not a number" in json.loads((tmp_path / "gate/verdict.json").read_text())["reasons"][0]


def test_other_harness_or_golden_set_cannot_be_compared(
    write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path
) -> None:
    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        "harness.dtype": lambda scores: scores["harness"].update(dtype="bfloat16"),
        "harness.tasks.choice": lambda scores: scores["harness"]["tasks"].update(choice="0" * 64),
        "golden.closed_book": lambda scores: scores["golden"].update(closed_book="0" * 64),
    }
    for number, (field, change) in enumerate(changes.items()):
        champion = tmp_path / f"champion-{number}"
        shutil.copytree(evaluations["trained"], champion, ignore=shutil.ignore_patterns("record.json"))
        scores = json.loads((champion / "scores.json").read_text())
        change(scores)
        (champion / "scores.json").write_text(json.dumps(scores))
        job = write_job("gate", {"metrics": [RULE]}, {"candidate": evaluations["trained"], "champion": champion})
        with pytest.raises(BadInput, match=field) as refused:
            run_gate(job, tmp_path / "out")
        assert refused.value.field == field
        assert not (tmp_path / "out/verdict.json").exists()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"metrics": []}, "config.metrics"),
        ({}, "config.metrics: is missing"),
        ({"metrics": [RULE, RULE]}, "two rules for closed_book.exact_match"),
        ({"metrics": [{**CHOICE, "metric": "choice.acuracy"}]}, "choice.acuracy was not scored"),
        ({"metrics": [{**CHOICE, "direction": "lower"}]}, "of choice.accuracy higher is better"),
        ({"metrics": [{**CHOICE, "floor": float("nan")}]}, "floor"),
        ({"metrics": [CHOICE], "alpha": 0.001}, "needs at least 10000 resamples"),
        ({"metrics": [CHOICE], "aplha": 0.1}, "did you mean `alpha`"),
    ],
)
def test_policy_that_cannot_be_answered(
    policy: dict[str, Any], said: str, write_job: WriteJob, evaluations: dict[str, Path], tmp_path: Path
) -> None:
    if said.startswith("needs"):
        policy = {**policy, "resamples": 1000}
    with pytest.raises(BadInput, match=said):
        run_gate(write_job("gate", policy, {"candidate": evaluations["trained"]}), tmp_path / "out")
    assert not (tmp_path / "out/record.json").exists()
