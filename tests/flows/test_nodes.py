"""A training stage on two nodes: this process is the first one, a Prefect worker with its flow run is the other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flows.launch import run_stage
from flows.nodes import other_nodes
from flows.services import running
from flows.settings import Settings
from lineage.job import Job
from lineage.record import read_record
from tests.flows.programs import Command
from tests.training.tiny_training import QUICK, TINY_MODEL, VOCABULARY, pack_row, write_packed, write_tokenizer

STATES = """
import json
from prefect import get_client
with get_client(sync_client=True) as client:
    print("states", json.dumps([run.state.name for run in client.read_flow_runs()]), flush=True)
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = tmp_path / "data"
    write_tokenizer(data / "tokenizer", VOCABULARY)
    for seed, split in enumerate(("train", "validation")):
        generator = torch.Generator().manual_seed(seed)
        write_packed(data, "pretrain", split, [pack_row("pretrain", generator) for _ in range(8)])
    config = {"model": TINY_MODEL, "training": {**QUICK, "objective": "pretrain"}}
    resources = {"processes": 2, "nodes": 2, "engine": "fsdp2", "device": "cpu"}
    return Job(name="tiny", version="1", stage="pretrain", config=config, parents={"data": data}, resources=resources)


@pytest.mark.slow
def test_a_worker_of_the_pool_trains_the_other_nodes_share(
    job: Job, tmp_path: Path, start_command: Callable[..., Command], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path / "home", node_address="127.0.0.1", prefect_api_url="", mlflow_tracking_uri="")
    out = tmp_path / "out"
    with running(settings, "prefect"):
        with other_nodes(job, out, settings) as meeting:
            start_command(
                "import runpy, sys; sys.argv = ['prefect', '--no-prompt', 'worker', 'start', '--pool', 'goldpath-nodes',"
                " '--type', 'process', '--limit', '1']; runpy.run_module('prefect', run_name='__main__')"
            )
            run_stage(job, out, settings, meeting=meeting)
        states = start_command(STATES).read_until("states")
    assert json.loads(states.removeprefix("states ")) == ["Completed"]
    assert read_record(out).metrics["steps"] == QUICK["steps"]
    assert len(list((out / ".checkpoints" / "step-000006").glob("rank-*.safetensors"))) == 2
