"""`torchrun`, whose end says what happened: `python -m training.launch [torchrun's options] -m training …`.

torchrun ends with exit code 1 whatever came to pass, and with a traceback of its own. This is torchrun with an end that a
scheduler or a flow can act on: one error, of the process that failed first, and that process's exit code.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lineage.errors import ExitCode, GoldpathError, run_cli
from lineage.privacy import switch_off_telemetry
from training.last_words import read_word, was_said
from training.resources import Resources

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


class NodesDidNotMeet(GoldpathError):
    """The agents of a run's nodes did not find each other, or lost the one that keeps them together."""

    exit_code = ExitCode.TRY_AGAIN

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"the nodes did not meet, or lost each other ({error}). Fix: start the same command on every node, with "
            "an address and a port of the first one that the others can reach"
        )


# torchrun reads its options from PET_ variables too. By default it dies of the signal that SLURM sends ahead of a time
# limit, kills processes that still write their checkpoint 30 s after any other, and processes that meet again after a
# restart find the addresses of the dead in its store. Its log tells in many lines what is told here in one.
DEFAULTS = {
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(Resources().grace_seconds),
    "LOGLEVEL": "CRITICAL",
}


def main() -> int:
    """Runs torchrun's agent to its end; returns the exit code of the process that failed first, 0 where none did."""
    switch_off_telemetry()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    api._terminate_process_handler = _end_once  # type: ignore[assignment]
    try:
        run(parse_args(sys.argv[1:]))  # type: ignore[no-untyped-call]  # torchrun's own `main`, in two steps
    except SignalException as ended:
        return 128 + ended.sigval
    except (RendezvousError, DistError) as error:
        raise NodesDidNotMeet(error) from None
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: blame(item[1]))
        if not _has_been_said(error.failures):
            print(f"error: {describe(rank, failure)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return ExitCode.OK


def _end_once(number: int, _frame: object) -> NoReturn:
    """Ends the agent, which ends its processes in order. With torchrun's own handler a second signal breaks that off.

    Raises:
        SignalException: what torchrun expects.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    for name in os.environ["PET_SIGNALS_TO_HANDLE"].split(","):
        signal.signal(signal.Signals[name.strip()], signal.SIG_IGN)
    raise SignalException(f"process {os.getpid()} got signal {number}", signal.Signals(number))


def blame(failure: "ProcessFailure") -> tuple[int, int]:
    """Returns a key by which the process that failed first comes first: others only lost it, or were ended with it."""
    if failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGUSR1):
        return 2, failure.timestamp
    return int(failure.exitcode == ExitCode.TRY_AGAIN), failure.timestamp


def describe(rank: int, failure: "ProcessFailure") -> str:
    """Returns what a person should know of a process that failed."""
    if word := read_word(Path(failure.error_file)):
        return word.message
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return (
            f"rank {rank} (process {failure.pid}) was ended by {name}, and no restart was left. Fix: where memory ran out, "
            "see `goldpath plan`; else run the same command again: it continues from the last checkpoint"
        )
    said = failure.message
    message = said["message"] if isinstance(said, dict) else f"exit code {failure.exitcode}"
    return f"rank {rank} failed: {message}. Fix: its traceback is above"


def _has_been_said(failures: "dict[int, ProcessFailure]") -> bool:
    """Whether one that had not met the others has told the error, or rank 0, if it is here.

    Rank 0 may have been ended before it failed by itself, and then torchrun does not name it; its file lies beside the
    others.
    """
    rank, failure = next(iter(failures.items()))
    if was_said(Path(failure.error_file)):
        return True
    if rank != failure.local_rank:  # rank 0 is on another node
        return False
    word = read_word(Path(failure.error_file).parents[1] / "0" / Path(failure.error_file).name)
    return word is not None and word.is_final


if __name__ == "__main__":
    run_cli(main)
