"""What the release wing asks of the gateway over HTTP: which bundles are ready, what they answered, and probe answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from lineage.errors import GoldpathError
from serving.metrics import Observation, ObservationPage
from serving.routes import ArmName

STATUS_SECONDS = 5.0


class GatewaySilent(GoldpathError):
    """The gateway does not answer, or answers nonsense. Whether that matters is the caller's question of time."""


class ArmStatus(BaseModel):
    """One arm as the gateway sees it; `error` says why its endpoint last failed."""

    digest: str
    ready: bool
    error: str = ""


class GatewayClient:
    """Talks to one gateway about one model, and follows its observations across restarts.

    Args:
        url: the gateway's base URL.
        model: the route's name.
    """

    def __init__(self, url: str, model: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False)  # a proxy is for other machines
        self._model = model
        self._epoch = ""
        self._after = 0

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def arms(self, token: int) -> dict[ArmName, ArmStatus]:
        """Returns how the arms are once the gateway follows a route at least as new as a token; before that, none.

        Raises:
            GatewaySilent: no answer.
        """
        found = self._get("/goldpath/status", {})
        with _silence_explained():
            model = found["models"].get(self._model)
            if not model or int(model["token"]) < token:
                return {}
            names: tuple[ArmName, ...] = ("stable", "canary")
            return {name: ArmStatus.model_validate(model[name]) for name in names if model[name]}

    def new_observations(self) -> list[Observation]:
        """Returns what was observed since the last call; a gateway that was restarted counts from 1 again.

        Raises:
            GatewaySilent: no answer.
        """
        page = self._page()
        if page.epoch != self._epoch:
            restarted, self._epoch, self._after = bool(self._epoch), page.epoch, 0
            page = self._page() if restarted else page
        if page.observations:
            self._after = page.observations[-1].seq
        return page.observations

    def ask(self, arm: ArmName, question: str, max_tokens: int, seconds: float) -> tuple[str, str]:
        """Asks one arm a question and returns the answer's text and the digest that gave it.

        Raises:
            GatewaySilent: there was no answer of the protocol's shape in time.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        with _silence_explained():
            answer = self._http.post("/v1/chat/completions", json=body, headers={"x-goldpath-arm": arm}, timeout=seconds)
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
            return str(text), answer.headers.get("x-goldpath-digest", "")

    def _page(self) -> ObservationPage:
        found = self._get("/goldpath/observations", {"model": self._model, "after": self._after})
        with _silence_explained():
            return ObservationPage.model_validate(found)

    def _get(self, path: str, params: dict[str, str | int]) -> dict[str, Any]:
        with _silence_explained():
            answer = self._http.get(path, params=params, timeout=STATUS_SECONDS)
            answer.raise_for_status()
            found = answer.json()
            if not isinstance(found, dict):
                raise ValueError("not a JSON object")
            return found


@contextmanager
def _silence_explained() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, ValidationError) as error:
        raise GatewaySilent(
            f"the gateway did not answer ({type(error).__name__}: {error}). Fix: start `goldpath up`"
        ) from None
