"""What the gateway saw: one observation per request, kept for the canary's judge and summed up for Prometheus."""

import itertools
import time
import uuid
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lineage.section import Section
from serving.routes import ArmName

CAPACITY = 100_000  # about 60 MB at worst; a judge that polls every second loses nothing below 100,000 requests/s
SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Observation(Section):
    """One answer of one arm, as the gateway passed it on.

    A request that the canary failed and the stable arm then answered makes two observations.

    Attributes:
        seq: counts up by one per observation, from 1, within one epoch (one life of the gateway); the log gives it.
        at: when the request arrived, Unix seconds.
        model: the route's model name.
        digest, arm: which bundle answered, and as what.
        status: the HTTP status; 499 where the client went away first; 502 or 503 where the arm could not answer.
        seconds: from the request's arrival to the last byte of its answer.
        completion_tokens: as the endpoint's usage said; for a stream without usage the number of its content chunks.
        finish_reason: `stop`, `length`, or "" where the answer has none.
        empty: a 200 answer whose text is blank.
        malformed: a 200 answer that is not UTF-8 JSON of the protocol's shape, holds a replacement character (text cut
            inside a character), or was cut by the token limit.
        error: why the arm failed to answer, "" where it did. A client's own mistake (4xx) is no error of the arm.
        probe: sent with a forced arm: never part of the traffic that a judge counts.
    """

    at: float
    model: str
    digest: str
    arm: ArmName
    status: int
    seconds: float
    completion_tokens: int = 0
    finish_reason: str = ""
    empty: bool = False
    malformed: bool = False
    error: str = ""
    probe: bool = False
    seq: int = 0


class ObservationPage(Section):
    """The answer of `GET /goldpath/observations`.

    Attributes:
        epoch: names one life of the gateway; with another epoch the counting began again.
        dropped: how many observations of any model after the asked one are no longer held.
        observations: those asked for, oldest first.
    """

    epoch: str
    dropped: int = 0
    observations: list[Observation]


class TrafficLog:
    """The gateway's memory of its answers: the last ones in full, all of them as Prometheus counters.

    >>> log = TrafficLog()
    >>> log.record(Observation(at=time.time(), model="m", digest="sha256:…", arm="stable", status=200, seconds=0.1))
    >>> log.page("m", after=0).observations
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.epoch = uuid.uuid4().hex
        self.started_at = time.time()
        self._kept: deque[Observation] = deque(maxlen=capacity)
        self._numbers = itertools.count(1)
        self._registry = CollectorRegistry()
        labels = ["model", "arm", "digest"]
        self._requests = Counter(
            "goldpath_requests", "Answers by HTTP status", [*labels, "status", "probe"], registry=self._registry
        )
        self._seconds = Histogram(
            "goldpath_request_seconds", "Seconds to the last byte", labels, buckets=SECONDS_BUCKETS, registry=self._registry
        )
        self._tokens = Counter("goldpath_completion_tokens", "Generated tokens", labels, registry=self._registry)
        self._faults = Counter("goldpath_faults", "Faulty answers by kind", [*labels, "kind"], registry=self._registry)

    def record(self, observation: Observation) -> None:
        """Numbers, keeps and counts one observation."""
        self._kept.append(observation.model_copy(update={"seq": next(self._numbers)}))
        labels = (observation.model, observation.arm, observation.digest)
        self._requests.labels(*labels, str(observation.status), str(observation.probe).lower()).inc()
        self._seconds.labels(*labels).observe(observation.seconds)
        self._tokens.labels(*labels).inc(observation.completion_tokens)
        for kind in ("error", "empty", "malformed"):
            if getattr(observation, kind):
                self._faults.labels(*labels, kind).inc()

    def page(self, model: str | None = None, after: int = 0) -> ObservationPage:
        """Returns what was seen after one sequence number, of one model or of all."""
        oldest = self._kept[0].seq if self._kept else after + 1
        newer = itertools.takewhile(lambda seen: seen.seq > after, reversed(self._kept))
        found = [seen for seen in newer if model in (None, seen.model)]
        return ObservationPage(epoch=self.epoch, dropped=max(0, oldest - after - 1), observations=found[::-1])

    def exposition(self) -> bytes:
        """Returns the counters in Prometheus' text format."""
        return generate_latest(self._registry)
