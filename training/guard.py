"""What makes a step a bad one: a pure judgement on its loss and its gradient norm. The loop acts on it.

A run that diverges wastes every hour after the step that broke it. Chowdhery et al. 2022 (PaLM, section 5.1) went back to a
checkpoint before the spike, and left out the batches around it: that is what `rewind` does.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 64  # losses that a new one is compared with
FEWEST = 16  # below that many no loss counts as a spike: the first steps fall steeply
NORMAL_MAD = 1.4826  # median absolute deviation → standard deviation, for a normal distribution
LEAST_SPREAD = 0.01  # of the median: where losses hardly differ, a little more is no spike
MOST_NAMED = 12  # rows in one line
MOST_IN_A_ROW = 10  # bad steps, until it is no accident any more


@dataclass(frozen=True)
class StepResult:
    """What one step came to, over all processes.

    Attributes:
        step: its number; the first is 0.
        rows: the packed rows that it read.
        loss: the mean over its terms, in nats.
        grad_norm: the global gradient norm before clipping.
        sources: the ids of the data's rows in them; empty where the data does not tell.
    """

    step: int
    rows: Sequence[int]
    loss: float
    grad_norm: float
    sources: Sequence[str] = ()

    def __str__(self) -> str:
        named = f"rows {_some(self.sources)}" if self.sources else f"packed rows {_some(self.rows)}"
        return f"step {self.step + 1}: loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, {named}"


def _some(names: Sequence[object]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(map(str, names[:MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def find_fault(result: StepResult, recent: Sequence[float], deviations: float) -> str:
    """Returns what is wrong with a step, "" if nothing is.

    A spike is a loss above median + `deviations` x 1.4826 x MAD of the recent ones: both estimates stay where they are when
    a few of the recent losses are outliers themselves (Rousseeuw & Croux 1993).

    Args:
        recent: losses of the steps before, at most `WINDOW`.
        deviations: 0 looks for numbers that are not finite alone.
    """
    if not math.isfinite(result.loss):
        return "its loss is no finite number"
    if not math.isfinite(result.grad_norm):
        return "its gradient is no finite number"
    if not deviations or len(recent) < FEWEST:
        return ""
    middle = statistics.median(recent)
    spread = NORMAL_MAD * statistics.median(abs(loss - middle) for loss in recent)
    limit = middle + deviations * max(spread, LEAST_SPREAD * abs(middle))
    return f"its loss is a spike (above {limit:.4g})" if result.loss > limit else ""


def remember(recent: Sequence[float], loss: float) -> tuple[float, ...]:
    """Returns the window of recent losses with a new one."""
    return (*recent, loss)[-WINDOW:]
