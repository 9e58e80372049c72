"""The processes that train together: who this one is, where it computes, and what they agree on over the CPU."""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lineage.errors import BadInput, ExitCode, GoldpathError

if TYPE_CHECKING:
    from training.resources import Resources

T = TypeVar("T")
PLACE = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))  # torchrun's variables; the values when alone
SECONDS_TO_FAIL_TOGETHER, SECONDS_TO_END_TOGETHER = 10, 600
GLOO_TRANSPORT = "gloo/transport"  # in gloo's errors of connections; torch has a type for NCCL's and its store's only


class LostConnection(GoldpathError):
    """Another process of this run is gone, and nothing can be done without it."""

    exit_code = ExitCode.TRY_AGAIN

    def __init__(self, error: BaseException) -> None:
        first_line = str(error).strip().partition("\n")[0][:200]
        super().__init__(
            f"lost the other processes ({first_line}). Fix: see what the first of them said that ended; the same command "
            "continues from the last checkpoint"
        )


class SaidByFirst(GoldpathError):
    """An error that all processes end with, and that rank 0 says."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True)
class Processes:
    """This process among those of its run. With one process nothing is communicated.

    Attributes:
        rank, world: this process's number, and how many there are.
        device: where the model lives.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that holds the output folder and talks to the user."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a float tensor over all processes, as float64 on the CPU; the same on all of them."""
        total = values.detach().to("cpu", torch.float64)
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def highest(self, *values: int) -> list[int]:
        """Returns the highest of each value over all processes; the same on all of them."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(value) for value in tensor]

    def gather(self, value: T) -> list[T]:
        """Returns every process's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def on_first(self, work: Callable[[], T]) -> T:
        """Runs work on rank 0 while the others wait, and returns its result on all; if it fails, it fails on all.

        Raises:
            GoldpathError: the error of rank 0, so that every process ends with the same code and none waits forever.
        """
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except Exception as error:
                known = error if isinstance(error, GoldpathError) else GoldpathError(f"rank 0: {error!r}")
                if self.world > 1:
                    dist.broadcast_object_list([None, (str(known), known.exit_code)])
                raise known.met_together() from None
        if self.world > 1:
            dist.broadcast_object_list(outcome)
            if outcome[1]:
                raise SaidByFirst(*outcome[1])
        return cast(T, outcome[0])

    def on_all(self, work: Callable[[], T]) -> T:
        """Runs work on every process, and returns each one's own result; if it fails on one, it fails on all.

        Raises:
            GoldpathError: the error of the lowest rank that failed, with its host, so that a file that one node misses is
                one error, and no process waits for those that ended.
        """
        result: list[T] = []
        failure, caught = None, None
        try:
            result.append(work())
        except GoldpathError as error:
            place = f"rank {self.rank} on {socket.gethostname()}: " if self.rank else ""
            failure, caught = (f"{place}{error}", error.exit_code), error
        failures = [one for one in self.gather(failure) if one]
        if caught and self.is_first:
            raise caught.met_together()
        if failures:
            raise SaidByFirst(*failures[0])
        return result[0]


def join_processes(resources: "Resources", where: Path) -> Processes:
    """Finds this process's place, joins the others, and sets its threads.

    `torchrun` says through RANK, WORLD_SIZE and LOCAL_RANK who we are; without it we are alone. It may start fewer or more
    processes than the job asks for, because nodes come and go: any number trains the same, if it divides the rows.

    Raises:
        BadInput: the processes that were started are not those that the job asks for, or there is no such device.
        LostConnection: not all of them came.
    """
    world, rank, local = (int(os.environ.get(name, alone)) for name, alone in PLACE)
    if is_under_torchrun():
        _meet_other_world(resources, world, rank, where)
    elif world != resources.processes:
        raise BadInput(
            where,
            "resources.processes",
            f"is {resources.processes}, but {world} process(es) were started",
            f"start it with `torchrun --standalone --nproc-per-node {resources.processes} -m training …`"
            if resources.processes > 1
            else "start it with `python -m training …`",
        )
    device = _choose_device(resources, local, where)
    torch.set_num_threads(threads_per_process(resources))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 or resources.engine != "single":
        _join(device, rank, world)
    return Processes(rank, world, device)


def is_under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process of the run cannot be reached (any more)."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and GLOO_TRANSPORT in str(error))


def threads_per_process(resources: "Resources") -> int:
    """Returns the CPU threads of each process: as configured, else this machine's cores divided over its processes."""
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return resources.threads or max(1, len(os.sched_getaffinity(0)) // local_world)


def leave_processes(failed: bool = False) -> None:
    """Ends the group in step: a process that leaves early takes its connections with it, and the others fail.

    Args:
        failed: the run ends with an error. Then the others may be stuck elsewhere, so they are waited for only so long.
    """
    if not dist.is_initialized():
        return
    arrived = dist.all_reduce(torch.zeros(1), async_op=True)
    try:
        arrived.wait(timedelta(seconds=SECONDS_TO_FAIL_TOGETHER if failed else SECONDS_TO_END_TOGETHER))
    except RuntimeError:
        if not failed:
            raise
        print("the other processes did not follow; torchrun ends them", file=sys.stderr)
    dist.destroy_process_group()


def end_at_once(code: int) -> NoReturn:
    """Ends this process without any clean-up of interpreter and libraries, once all that it said is out.

    A thread of DeepSpeed's may still run when C++ destroys it, and then a process aborts (SIGABRT) whose work is done and
    recorded; torchrun calls that a failure. Or gloo's thread waits for Python, to release a tensor, while Python waits for
    that thread, to destroy its group, and the process never ends.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _choose_device(resources: "Resources", local_rank: int, where: Path) -> torch.device:
    gpus = torch.cuda.device_count()
    if resources.device == "cpu" or (resources.device == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise BadInput(
            where,
            "resources.device",
            f"process {local_rank} asks for a GPU, but this machine has {gpus}",
            "set `device: cpu`, or as many processes as there are GPUs",
        )
    return torch.device("cuda", local_rank)


def _meet_other_world(resources: "Resources", world: int, rank: int, where: Path) -> None:
    if world > 1 and resources.engine == "single":
        raise BadInput(
            where, "resources.engine", f"is `single`, but {world} processes were started", "choose ddp, fsdp2 or zero3"
        )
    if world != resources.processes and not rank:
        print(f"{world} processes train, where the job asks for {resources.processes}", file=sys.stderr)


def _join(device: torch.device, rank: int, world: int) -> None:
    # Control messages (errors, signals, counts) go over gloo on CPU tensors, so that they never wait for the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        # A sharded engine on one process is legal, and the smallest case to debug: it meets nobody.
        store: Store = HashStore() if world == 1 else _meeting_place()
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostConnection(error) from None


def _meeting_place() -> Store:
    """Returns where processes leave their addresses for each other.

    torchrun's own store outlives a restart, and with it the addresses of processes that are dead: so every attempt has its
    part of it. Agents of several nodes count attempts differently: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each
    attempt a store of its own (infra/README.md).
    """
    store: Store = next(rendezvous("env://"))[0]
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store
