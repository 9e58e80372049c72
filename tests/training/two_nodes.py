"""Two nodes: network namespaces with an address each, joined by a cable, and torchrun's agent on each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiny_training import ROOT

SUBNET = "10.213.77"


@dataclass(frozen=True)
class Node:
    """One of the two nodes: the first one hosts the rendezvous.

    Attributes:
        namespace: its network namespace, which is also the name of its interface.
        number: 0 or 1.
    """

    namespace: str
    number: int

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.number + 1}"

    def start(
        self, job: Path, out: Path, launcher: str = "training.launch", nodes: str = "2", restarts: int = 3
    ) -> "subprocess.Popen[str]":
        """Starts this node's agent with one process; its pid is the agent's own."""
        rendezvous = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={SUBNET}.1:29500",
            "--rdzv-id=two-nodes",
            f"--rdzv-conf=is_host={int(self.number == 0)},last_call_timeout=10",
            f"--local-addr={self.address}",
        ]
        torchrun = [f"--nnodes={nodes}", "--nproc-per-node=1", f"--max-restarts={restarts}", *rendezvous]
        command = [sys.executable, "-m", launcher, *torchrun, "-m", "training", "--config", str(job), "--out", str(out)]
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.namespace},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Makes two nodes that see each other and nothing else, and removes them.

    Raises:
        OSError: this system does not let us make network namespaces.
    """
    nodes = [Node(f"gp{os.getpid()}{letter}", number) for number, letter in enumerate("ab")]
    if not shutil.which("ip") or not shutil.which("nsenter"):
        raise OSError("there is no `ip` or no `nsenter` here")
    try:
        for node in nodes:
            _ip("netns", "add", node.namespace)
        first, second = (node.namespace for node in nodes)
        _ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for node in nodes:
            _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.namespace)
            for device in ("lo", node.namespace):
                _ip("-n", node.namespace, "link", "set", device, "up")
        yield nodes
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
