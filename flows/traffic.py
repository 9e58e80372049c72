"""Real client traffic for a demonstration: many people at once, over HTTP, through the gateway; every failure counts."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import httpx

CLIENTS = 8  # people who ask at the same time
MAX_TOKENS = 24  # a module's name takes fewer than ten


class Traffic:
    """Clients that ask until they are told to stop. Each question is a session of its own, so weights show as shares.

    Attributes:
        answers: how many requests each bundle digest answered.
        failures: what went wrong, by its text; a failed request is one that a person would have noticed.

    Args:
        served: whether the model answers already. One that never did has no users: its clients wait for the first answer.
    """

    def __init__(self, gateway_url: str, model: str, questions: Sequence[str], served: bool, seed: int = 0) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._url, self._model, self._questions = f"{gateway_url}/v1/chat/completions", model, list(questions)
        self._stop, self._served = threading.Event(), threading.Event()
        if served:
            self._served.set()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._ask, args=(seed + i,), daemon=True) for i in range(CLIENTS)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        choose = random.Random(seed)
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                question = choose.choice(self._questions)
                body = {"model": self._model, "messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS}
                session = {"x-session-id": f"{seed}-{next(self._numbers)}"}
                try:
                    answer = client.post(self._url, json=body | {"temperature": 0}, headers=session)
                    answer.raise_for_status()
                    self.answers[answer.headers["x-goldpath-digest"]] += 1
                    self._served.set()
                except (httpx.HTTPError, KeyError) as problem:
                    if self._served.is_set():
                        self.failures[f"{type(problem).__name__}: {problem}"] += 1
                    else:
                        self._stop.wait(0.2)
