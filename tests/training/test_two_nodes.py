"""Two nodes with addresses of their own train what one node trains, lose one another, and meet again."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_training import Command, wait_until
from two_nodes import Node, two_nodes

from lineage.files import sha256_file
from lineage.record import read_record

WEIGHTS = Path("bundle") / "model.safetensors"
TRAINING = {"steps": 150, "checkpoint_every": 10, "log_every": 10, "validation_rows": 1}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """Two network namespaces; the tests are skipped where none can be made."""
    try:
        with two_nodes() as made:
            yield made
    except OSError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")


@pytest.fixture(scope="module")
def command(packed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(packed_data, tmp_path_factory.mktemp("nodes"))


def job(command: Command, engine: str = "fsdp2") -> Path:
    return command.job("pretrain", resources={"processes": 2, "engine": engine, "device": "cpu"}, **TRAINING)


@pytest.fixture(scope="module")
def one_node(command: Command) -> Path:
    """A finished run of two processes on one node."""
    out = command.folder / "one-node"
    code, _, errors = command.run(job(command), out, processes=2)
    assert code == 0, errors
    return out


def finish(*agents: "subprocess.Popen[str]") -> list[str]:
    """Waits for agents to end well, and returns what they said."""
    try:
        said = [agent.communicate(timeout=150)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * len(agents), "\n".join(said)
    return said


def wait_for_checkpoint(out: Path, agent: "subprocess.Popen[str]") -> None:
    wait_until(lambda: any((out / ".checkpoints").glob("step-*")) or agent.poll() is not None)
    assert agent.poll() is None


def test_two_nodes_give_the_bytes_of_one(nodes: list[Node], command: Command, one_node: Path, tmp_path: Path) -> None:
    finish(*(node.start(job(command), tmp_path / "out", "torch.distributed.run") for node in nodes))
    assert sha256_file(tmp_path / "out" / WEIGHTS) == sha256_file(one_node / WEIGHTS)


@pytest.mark.slow
def test_zero3_on_two_nodes_gives_the_bytes_of_one(nodes: list[Node], command: Command, tmp_path: Path) -> None:
    code, _, errors = command.run(job(command, "zero3"), tmp_path / "one", processes=2)
    assert code == 0, errors
    finish(*(node.start(job(command, "zero3"), tmp_path / "two") for node in nodes))
    assert sha256_file(tmp_path / "two" / WEIGHTS) == sha256_file(tmp_path / "one" / WEIGHTS)


@pytest.mark.slow
def test_a_node_whose_agent_is_killed_may_come_back(
    nodes: list[Node], command: Command, one_node: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = (node.start(job(command), out) for node in nodes)
    wait_for_checkpoint(out, second)
    second.send_signal(signal.SIGKILL)
    second.communicate()  # its output ends when its process has ended, too
    said, _ = finish(first, nodes[1].start(job(command), out))
    assert "continuing from step-" in said
    assert sha256_file(out / WEIGHTS) == sha256_file(one_node / WEIGHTS)


@pytest.mark.slow
def test_one_node_goes_on_alone_where_it_may(nodes: list[Node], command: Command, one_node: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = (node.start(job(command), out, nodes="1:2") for node in nodes)
    wait_for_checkpoint(out, second)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    (said,) = finish(first)
    assert "1 processes train, where the job asks for 2" in said
    alone, together = (read_record(folder).metrics["validation_loss"] for folder in (out, one_node))
    assert alone == pytest.approx(together, abs=1e-3)
