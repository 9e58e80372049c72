"""Probe questions with known answers, asked of both arms through the gateway while real traffic flows."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lineage.errors import BadInput
from serving.config import CanaryPolicy
from serving.release.gateway_client import GatewayClient, GatewaySilent
from serving.release.verdict import Probe
from serving.routes import ArmName

AT_ONCE = 3  # probes come on top of real traffic, so few at a time


class ProbeItem(BaseModel):
    """A question with one right answer, as in the data stage's `golden/probe.jsonl`; other keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


def read_probes(path: Path) -> list[ProbeItem]:
    """Reads the probe set.

    Raises:
        BadInput: it is missing or empty, or a line is no probe item.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            path,
            "",
            f"cannot be read ({error})",
            "add a source with `golden_set: probe` to `data:`, and build a new version",
        ) from None
    items = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise BadInput(path, "", "holds no probe item", "a canary without a quality probe is not one; add questions")
    return items


def is_right(answer: str, expected: str) -> bool:
    """Compares answers as the offline gate does (`evaluation/scoring.py`): white space, quotes, one full stop aside."""
    return _normalise(answer) == _normalise(expected)


class ProbeRun:
    """The probes of one canary: each step asks the next few questions of both arms, the champion's answers once.

    Args:
        digests: what each arm serves; an answer from another bundle is none. Without a stable arm none is asked.
    """

    def __init__(
        self, gateway: GatewayClient, items: Sequence[ProbeItem], policy: CanaryPolicy, digests: Mapping[ArmName, str]
    ) -> None:
        self._gateway, self._policy, self._digests = gateway, policy, digests
        # Ordered by hash: neighbours in the file ask for neighbouring facts, and a step should see all kinds.
        self._items = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest())
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe")
        self._asked: dict[str, dict[ArmName, Future[bool | None]]] = {}
        self._next = 0

    def ask_more(self) -> None:
        """Starts the next step's questions; when all were asked, the candidate is asked the first ones again."""
        for _ in range(min(self._policy.probes_per_step, len(self._items))):
            item = self._items[self._next % len(self._items)]
            self._next += 1
            arms = self._asked.setdefault(item.id, {})
            if "stable" in self._digests and "stable" not in arms:
                arms["stable"] = self._pool.submit(self._ask, "stable", item)
            arms["canary"] = self._pool.submit(self._ask, "canary", item)

    @property
    def finished(self) -> bool:
        """Returns whether every question was answered or given up."""
        return all(future.done() for arms in self._asked.values() for future in arms.values())

    def results(self) -> dict[str, Probe]:
        """Returns the outcomes by item; a candidate that did not answer yet did not answer."""
        return {
            name: Probe(candidate=bool(_outcome(arms.get("canary"))), champion=_outcome(arms.get("stable")))
            for name, arms in self._asked.items()
        }

    def close(self) -> None:
        """Drops the questions that wait; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, arm: ArmName, item: ProbeItem) -> bool | None:
        try:
            text, digest = self._gateway.ask(arm, item.question, self._policy.probe_tokens, self._policy.probe_seconds)
        except GatewaySilent:
            return None
        return is_right(text, item.answer) if digest == self._digests[arm] else None


def _outcome(future: Future[bool | None] | None) -> bool | None:
    return future.result() if future and future.done() and not future.exception() else None


def _normalise(answer: str) -> str:
    return " ".join(answer.split()).removesuffix(".").strip("`'\"")


def _parse(path: Path, number: int, line: str) -> ProbeItem:
    try:
        return ProbeItem.model_validate_json(line)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        where = f"line {number}: {field}" if field else f"line {number}"
        raise BadInput(path, where, error.errors()[0]["msg"], "run the data stage again") from None
