"""The nightly flow on a real champion, evaluated by the real stage, on a real Prefect server."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.services import running
from flows.settings import Settings
from lineage.bundle import seal_bundle
from lineage.job import Job
from lineage.stage import StageRun
from serving.release.ledger import Ledger
from serving.release.states import Event
from serving.release.store import store_bundle
from tests.flows.programs import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

METRIC = "heldout.bits_per_byte"
TEXTS = [f"The module number {number} has a name and a place." for number in range(20)]

# Runs the flow, and prints its state, the artifacts it left and the alarms it raised.
NIGHT = """
import json, sys, time
from prefect import get_client
from flows.nightly_eval_flow import nightly_eval_flow
state = nightly_eval_flow(return_state=True)
with get_client(sync_client=True) as client:
    found = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)  # so that the newest of a key stays
    artifacts = {a.key: json.loads(a.data) if a.type == "table" else a.data for a in found}
    deadline = time.monotonic() + float(sys.argv[1])  # events arrive a moment after the run's end
    alarms = []
    while not alarms and time.monotonic() < deadline:
        time.sleep(0.2)
        wanted = {"filter": {"event": {"name": ["goldpath.champion.regressed"]}}}
        found = client.request("POST", "/events/filter", json=wanted)
        alarms = [event["payload"] for event in found.json()["events"]]
print("night", json.dumps({"name": state.name, "message": state.message, "artifacts": artifacts, "alarms": alarms}))
"""


def make_bundle(folder: Path) -> Path:
    """A Llama of random weights with a byte tokenizer: it can be scored, which is all that is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([*alphabet, "<|end|>"])}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", chat_template=template
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seal_bundle(folder)
    return folder


def write_golden(data: Path) -> dict[str, str]:
    """Writes one golden set as the data stage does, and returns sha256 by set."""
    (data / "golden").mkdir(parents=True)
    content = "".join(json.dumps({"id": f"h{n}", "kind": "heldout", "text": text}) + "\n" for n, text in enumerate(TEXTS))
    (data / "golden" / "heldout.jsonl").write_text(content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    entry = {"file": "heldout.jsonl", "sha256": sha256, "items": len(TEXTS), "kind": "heldout"}
    (data / "golden" / "manifest.json").write_text(json.dumps({"sets": {"heldout": entry}}))
    return {"heldout": sha256}


def finish(folder: Path, job: Job, files: dict[str, Any]) -> None:
    with StageRun(job, folder) as run:
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))
        run.finish({})


def crown(settings: Settings, version: str, digest: str) -> None:
    """Writes a version's way to champion into the ledger."""
    ledger = Ledger(settings.ledger)
    ledger.register("m", version, digest, "ada", {}, ledger.history("m").head)
    for event in (Event.GATED, Event.APPROVED, Event.CANARY_STARTED, Event.CANARY_STEP, Event.PROMOTED):
        history = ledger.history("m")
        payload = {"verdict": "pass", "weight": 100, "reason": "test"}
        ledger.append(event, history.release(version), "bob", payload, history.head)
    ledger.close()


@pytest.fixture(scope="module")
def champion_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Path, dict[str, str]]]:
    """A home with a stored bundle and golden data, and a running Prefect server."""
    folder = tmp_path_factory.mktemp("nightly")
    settings = Settings(home=folder / "home", prefect_api_url="", mlflow_tracking_uri="")
    suite = folder / "suite.yaml"
    suite.write_text("name: heldout\ntasks: [heldout]\n")
    golden = write_golden(folder / "data")
    digest = store_bundle(make_bundle(folder / "bundle"), settings.bundles)
    with running(settings, "prefect"):
        yield settings, folder, golden | {"digest": digest, "suite": str(suite)}


def release_with_score(settings: Settings, folder: Path, facts: dict[str, str], version: str, value: float) -> None:
    """Makes a champion whose release claims a score; the model's true one is about 8 bits, as its weights are random."""
    job = {"name": "m", "version": version}
    config = {"suite": facts["suite"]}
    metrics = {METRIC: {"value": value, "low": value - 0.01, "high": value + 0.01, "n": len(TEXTS)}}
    model = {"digest": facts["digest"], "metrics": metrics}
    scores = {"golden": {"heldout": facts["heldout"]}, "models": {"candidate": model}}
    runs = settings.runs / "m" / version
    parents = {"data": folder / "data", "candidate": folder / "bundle"}
    finish(runs / "evaluate", Job(**job, stage="evaluate", config=config, parents=parents), {"scores.json": scores})
    policy = {"metrics": [{"metric": METRIC, "direction": "lower", "floor": 100.0, "margin": 0.1}]}
    finish(runs / "gate", Job(**job, stage="gate", config=policy), {"verdict.json": {}})
    crown(settings, version, facts["digest"])


def spend_night(settings: Settings, start_command: Callable[..., Command], patience: float) -> dict[str, Any]:
    with running(settings, "prefect"):
        line = start_command(NIGHT, str(patience)).read_until("night {")
    return dict(json.loads(line.removeprefix("night ")))


def test_a_night_without_and_one_with_a_regression(
    champion_home: tuple[Settings, Path, dict[str, str]], start_command: Callable[..., Command]
) -> None:
    settings, folder, facts = champion_home
    release_with_score(settings, folder, facts, "1.0.0", 20.0)  # so tonight is better than at release
    night = spend_night(settings, start_command, 0)
    assert (night["name"], night["message"]) == ("Completed", "m@1.0.0: no regression")
    assert "no regression" in night["artifacts"]["m-nightly"]
    rows = night["artifacts"]["m-nightly-trend"]
    assert [row[METRIC] for row in rows] == [20.0, pytest.approx(8.0, abs=3.0)]

    release_with_score(settings, folder, facts, "1.1.0", 1.0)  # and now it is worse
    night = spend_night(settings, start_command, 30)
    assert night["name"] == "Regressed"
    assert night["message"].startswith(f"m@1.1.0: {METRIC} is ")
    assert "lower is better, and at release it was 1" in night["message"]
    assert [alarm["version"] for alarm in night["alarms"]] == ["1.1.0"]
    assert "`goldpath rollback m`" in night["artifacts"]["m-nightly"]

    weights = next((settings.bundles).glob("*/model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    night = spend_night(settings, start_command, 0)
    assert night["name"] == "Regressed"
    assert "could not be evaluated" in night["message"]
    assert "model.safetensors: was changed" in night["message"]
