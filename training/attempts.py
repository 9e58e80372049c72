"""The starts of one run, kept where no kill can lose them: how often it was restarted, how long it held its machine."""

import json
import time
from pathlib import Path

import psutil

from lineage.errors import BadInput
from lineage.files import write_json
from lineage.section import Section, parse

FILE = ".attempts.json"  # hidden: no output, so timings never enter a record's digests


class Attempt(Section):
    """One process that worked on the run.

    Attributes:
        started, ended: Unix times; the end is the last sign of life that it left in the metrics, 0 while it may live.
    """

    started: float
    ended: float = 0.0


class Attempts(Section):
    """All attempts at a run, the present one last.

    Attributes:
        attempts: in order.
        joules: what all but the present one used, as far as they could say.
    """

    attempts: tuple[Attempt, ...] = ()
    joules: float = 0.0

    @property
    def restarts(self) -> int:
        """How often the run was started again."""
        return len(self.attempts) - 1

    def held_seconds(self, now: float) -> float:
        """Returns for how long processes have worked on the run."""
        return sum((attempt.ended or now) - attempt.started for attempt in self.attempts)

    def goodput(self, productive: float, now: float) -> float:
        """Returns the effective training time ratio: the share of the time since the first start that trained the model.

        This is ETTR of Kokolis et al. 2024 (Revisiting Reliability in Large-Scale Machine Learning Research Clusters,
        section 3): productive runtime over wall-clock time. Unproductive are start-up, restored and repeated work (what
        Google's ML Productivity Goodput calls badput), the stalls of checkpoints, validation, and the time between a kill
        and the next start.

        Args:
            productive: seconds of the steps whose result the run has kept.
        """
        return min(1.0, productive / max(1e-9, now - self.attempts[0].started))


def begin_attempt(out: Path, metrics: Path, joules: float) -> Attempts:
    """Adds this process to a run's attempts, durably.

    Args:
        metrics: the file whose last change is the previous attempt's last sign of life.
        joules: what the metrics say was used so far.
    """
    before = _read(out / FILE)
    earlier = before.attempts
    if earlier and not earlier[-1].ended:
        seen = metrics.stat().st_mtime if metrics.is_file() else earlier[-1].started
        earlier = (*earlier[:-1], Attempt(started=earlier[-1].started, ended=max(seen, earlier[-1].started)))
    this = Attempt(started=min(psutil.Process().create_time(), time.time()))
    attempts = Attempts(attempts=(*earlier, this), joules=max(before.joules, joules))
    write_json(out / FILE, attempts.model_dump(mode="json"))
    return attempts


def _read(path: Path) -> Attempts:
    """Returns what is known of earlier attempts; a file that cannot be read costs the run its statistics, not its life."""
    try:
        return parse(Attempts, json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError, BadInput):
        return Attempts()
