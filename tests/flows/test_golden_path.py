"""The whole path on a corpus of a few kilobytes, through the command line only, with every server real.

The model is far too small to be good; its policies ask for nothing but sound evidence. What is tested is the path:
killed and continued, reused, registered, approved, released, rolled back, and refused where it must be.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from tiny_release import NAMES, tiny_recipe, write_corpus

from flows.report import write_report
from flows.services import running
from flows.settings import Settings
from flows.traffic import Traffic
from lineage.files import sha256_file

pytestmark = pytest.mark.slow
DEADLINE = 240


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home, a corpus, and two recipes: 1, and 2 with other SFT steps."""
    folder = tmp_path_factory.mktemp("path")
    write_corpus(folder)
    recipe = tiny_recipe(folder)
    (folder / "one.yaml").write_text(yaml.safe_dump(recipe))
    second = recipe | {"version": "2", "sft": recipe["sft"] | {"steps": 25}}
    (folder / "two.yaml").write_text(yaml.safe_dump(second))
    return folder


@pytest.fixture(scope="module")
def environment(place):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GOLDPATH_", "PREFECT_", "MLFLOW_"))}
    return clean | {"GOLDPATH_HOME": str(place / "home"), "GOLDPATH_ALLOW_DIRTY": "test", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def goldpath(environment):
    """Types a command, and returns its JSON, or what it said where there is none; `goldpath.said` keeps what it said."""

    def call(*words, code=0):
        command = [sys.executable, "-m", "flows.cli", *map(str, words), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        call.said = done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr

    return call


@pytest.fixture(scope="module")
def servers(place, environment):
    """Prefect, MLflow and the gateway, as `goldpath up` runs them."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with running(Settings(home=place / "home"), "prefect", "mlflow", "gateway", spare_used=False) as services:
            yield services
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def first(servers, place, environment, goldpath):
    """Version 1, killed with SIGKILL in the middle of pretraining and continued by the same command."""
    command = [sys.executable, "-m", "flows.cli", "run", str(place / "one.yaml"), "--json"]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pretrain = place / "home/runs/tiny/1/pretrain"
    deadline = time.monotonic() + DEADLINE
    while not list(pretrain.glob(".checkpoints/step-*")):
        assert run.poll() is None, "the run ended before it wrote a checkpoint"
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    killed_before_its_end = not (pretrain / "record.json").exists()
    result = goldpath("run", place / "one.yaml")
    return result | {"killed_before_its_end": killed_before_its_end}


@pytest.fixture(scope="module")
def champion(first, place, servers, goldpath):
    """Version 1 as champion: approved by somebody else, released on real traffic."""
    goldpath("approve", "tiny@1", "--as", "somebody-else", "--reason", "first model")
    return release(goldpath, servers, "tiny@1")


def release(goldpath, servers, address, code=0):
    served = any(model["state"] == "champion" for model in goldpath("models"))
    with Traffic(servers["gateway"].url, "tiny", [f"Hello! {name}?" for name in NAMES], served) as traffic:
        result = goldpath("release", address, code=code)
    assert not traffic.failures
    return result | {"answers": dict(traffic.answers)}


def test_a_killed_run_continues_and_ends_with_the_same_weights(first, place, environment, goldpath, tmp_path):
    assert first["verdict"] == "pass"
    stage = place / "home/runs/tiny/1/pretrain"
    replay = tmp_path / "again"
    command = [sys.executable, "-m", "training", "--config", str(stage / "job.yaml"), "--out", str(replay)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=DEADLINE)
    assert sha256_file(replay / "bundle/model.safetensors") == sha256_file(stage / "bundle/model.safetensors")
    assert first["killed_before_its_end"]


def test_the_same_run_again_reuses_everything(first, place, goldpath):
    plan = goldpath("plan", place / "one.yaml")
    assert {row["stage"]: row["action"] for row in plan["stages"] if row["stage"] != "gate"} == dict.fromkeys(
        ("data", "pretrain", "sft", "dpo", "evaluate"), "done"
    )
    again = goldpath("run", place / "one.yaml")
    assert again["digest"] == first["digest"]


def test_a_release_waits_for_approval_by_another_person(first, goldpath):
    goldpath("release", "tiny@1", code=4)
    assert goldpath.said.count("tiny@1 is gated, not approved. Fix: approve or reject it") == 1
    requester = goldpath("models")[0]["requester"]
    said = goldpath("approve", "tiny@1", "--as", requester, "--reason", "mine", code=2)
    assert "let somebody else approve it" in said


def test_the_champion_answers_over_http_with_its_digest(champion, first, servers):
    assert champion["outcome"] == "champion"
    answer = httpx.post(
        f"{servers['gateway'].url}/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "Where is name1?"}], "max_tokens": 4},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.headers["x-goldpath-digest"] == first["digest"]


def test_a_second_version_reuses_goes_through_four_steps_and_can_be_rolled_back(champion, first, place, servers, goldpath):
    second = goldpath("run", place / "two.yaml")
    assert second["against"] == "1"
    folder = place / "home/runs/tiny/2"
    assert (folder / "data").is_symlink()
    assert (folder / "pretrain").is_symlink()
    assert not (folder / "sft").is_symlink()
    goldpath("approve", "tiny@2", "--as", "somebody-else", "--reason", "not worse")
    result = release(goldpath, servers, "tiny@2")
    assert result["steps"] == 4
    assert set(result["answers"]) == {first["digest"], second["digest"]}
    assert {m["version"]: m["state"] for m in goldpath("models")} == {"1": "superseded", "2": "champion"}
    story = [entry["event"] for entry in goldpath("show", "tiny@2")["story"]]
    assert story == ["registered", "gated", "approved", "canary_started", *["canary_step"] * 4, "promoted"]
    back = goldpath("rollback", "tiny")
    assert back["champion"] == "1"
    assert back["digest"] == first["digest"]
    assert goldpath("release", "tiny@2", code=5)["outcome"] == "rolled back"
    again = goldpath("run", place / "two.yaml", "--only", "gate")  # the champion is 1 again, as it was for this verdict
    assert (again["verdict"], again["against"], again["state"]) == ("pass", "1", "rolled_back")
    assert goldpath("approve", "tiny@2", "--as", "somebody-else", "--reason", "once more")["event"] == "approved"


def test_a_repeated_release_repeats_its_answer(champion, place, servers, goldpath):
    assert goldpath("release", "tiny@1")["outcome"] == "champion"
    assert [path.name for path in (place / "home/runs/tiny/1").glob("canary-*")] == ["canary-1"]


def test_a_champion_is_not_gated_again(champion, place, goldpath):
    assert "it is the champion already" in goldpath("run", place / "one.yaml", "--only", "gate", code=2)
    again = goldpath("run", place / "one.yaml")
    assert (again["verdict"], again["state"]) == ("pass", "champion")
    assert "waits for approval" not in goldpath.said


def test_the_report_is_one_page_that_needs_nothing_else(champion, first, place):
    page = write_report(Settings(home=place / "home"), "tiny", ["1"], place / "report.html").read_text()
    assert page.count("<svg") >= 7  # losses, four metrics, funnel, canary
    assert first["digest"] in page
    assert "untrained" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_mlflow_shows_runs_and_aliases(champion, servers):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=servers["mlflow"].url)
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"1/pretrain", "1/sft", "1/dpo"} <= set(runs)
    assert runs["1/pretrain"].data.metrics["loss"] > 0
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["goldpath.version"] == "1"
    assert "bundle" in [artifact.path for artifact in client.list_artifacts(version.run_id)]


def test_evaluate_takes_a_version_and_a_folder(first, place, goldpath):
    by_name = goldpath("evaluate", "tiny@1", "--suite", "fast")
    by_folder = goldpath("evaluate", place / "home/runs/tiny/1/dpo/bundle", "--suite", "fast")
    assert by_name["metrics"] == by_folder["metrics"]


def test_a_finished_version_never_changes(first, place, goldpath):
    recipe = yaml.safe_load((place / "one.yaml").read_text())
    recipe["sft"]["learning_rate"] = 1e-4
    (place / "changed.yaml").write_text(yaml.safe_dump(recipe))
    assert "choose a new `version:`" in goldpath("run", place / "changed.yaml", code=2)


def test_a_registered_version_keeps_its_canary_policy(champion, place, goldpath):
    weak = tiny_recipe(place) | {"release": {"error_margin": 0.5}}
    (place / "weak.yaml").write_text(yaml.safe_dump(weak))
    assert "tiny@1: release: is not the policy" in goldpath("run", place / "weak.yaml", "--only", "data", code=2)


def test_tampering_is_found_and_named(first, place, goldpath, tmp_path):
    weights = place / "home/runs/tiny/1/sft/bundle/model.safetensors"
    shutil.copy(weights, tmp_path / "weights")
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    try:
        for words in (("run", place / "one.yaml"), ("show", "tiny@1"), ("plan", place / "one.yaml")):
            assert "model.safetensors" in goldpath(*words, code=2)
    finally:
        shutil.copy(tmp_path / "weights", weights)
    record = place / "home/runs/tiny/1/sft/record.json"
    honest = record.read_text()
    record.write_text(honest.replace('"stage": "sft"', '"stage": "sfx"'))
    try:
        assert "record.json" in goldpath("show", "tiny@1", code=2)
    finally:
        record.write_text(honest)


def test_the_command_names_what_is_unknown(goldpath, place):
    assert "not of the form NAME@VERSION" in goldpath("show", "tiny", code=2)
    assert "nobody@9" in goldpath("show", "nobody@9", code=2)
    assert "is no stage of this recipe" in goldpath("run", place / "one.yaml", "--only", "bake", code=2)
    assert "cannot be read" in goldpath("plan", Path("missing.yaml"), code=2)


def test_a_golden_set_that_the_suite_lacks_is_told_before_the_training(first, place, goldpath):
    recipe = yaml.safe_load((place / "one.yaml").read_text())
    chosen = [line for line in (place / "golden.jsonl").read_text().splitlines() if '"choice"' not in line]
    (place / "without-choice.jsonl").write_text("\n".join(chosen) + "\n")
    recipe["data"]["sources"][3]["path"] = "without-choice.jsonl"
    (place / "without-choice.yaml").write_text(yaml.safe_dump(recipe | {"version": "4"}))
    assert "sets.choice: is not there" in goldpath("run", place / "without-choice.yaml", code=2)
    assert not (place / "home/runs/tiny/4/pretrain").exists()


def test_an_error_of_a_stage_is_one_about_the_recipe(first, place, goldpath):
    recipe = yaml.safe_load((place / "one.yaml").read_text())
    recipe["sft"] |= {"lora_rank": 2, "lora_targets": ["q_prj"]}
    (place / "odd.yaml").write_text(yaml.safe_dump(recipe | {"version": "5"}))
    said = goldpath("run", place / "odd.yaml", code=2)
    assert "stage `sft`: the recipe: sft.lora_targets: `q_prj` is no " in said
