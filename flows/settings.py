"""Where Goldpath keeps its state and which servers it talks to: environment variables, never part of a fingerprint.

Import this inside functions of the CLI: pydantic-settings costs 0.06 s, which `goldpath --help` need not pay.
"""

import difflib
import os
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lineage.errors import BadInput

PREFIX = "GOLDPATH_"
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Goldpath's settings, each read from `GOLDPATH_<NAME>`, except the two that Prefect and MLflow name themselves.

    Attributes:
        home: the folder that holds all state; made absolute, so that a flow in another folder finds the same one.
        prefect_port, mlflow_port, gateway_port: ports on 127.0.0.1; 0 keeps the last one, or chooses a free one.
        ledger_url: SQLAlchemy URL of the release ledger; "" means SQLite under `home`.
        allow_dirty: why a model built by changed code may be registered; "" refuses it. The ledger keeps the reason.
        node_address: the address of this machine at which the other nodes of a training stage reach it.
        prefect_api_url: `PREFECT_API_URL`; where it is set, that server is used and none is started.
        mlflow_tracking_uri: `MLFLOW_TRACKING_URI`; the same for MLflow.
        prices: a price table (`training.prices`); "" leaves costs out.
        stage_retries: how often a flow starts a stage again that was ended from outside (preempted, out of memory).
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True)

    home: Path = Path(".goldpath")
    prefect_port: Port = 0
    mlflow_port: Port = 0
    gateway_port: Port = 0
    ledger_url: str = ""
    allow_dirty: str = ""
    prices: str = ""
    stage_retries: Annotated[int, Field(ge=0)] = 0
    node_address: str = Field(default_factory=socket.gethostname)
    prefect_api_url: str = Field(default="", validation_alias="PREFECT_API_URL")
    mlflow_tracking_uri: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        home = home.expanduser().absolute()
        if any(character in str(home) for character in "?#%"):
            raise ValueError("`?`, `#` and `%` mean something in the database URLs that are made of it")
        return home

    @property
    def runs(self) -> Path:
        """Stage folders: `runs/<name>/<version>/<stage>`."""
        return self.home / "runs"

    @property
    def hub(self) -> Path:
        """Models from the Hugging Face hub: `hub/<org>--<name>/<commit>`."""
        return self.home / "hub"

    @property
    def bundles(self) -> Path:
        """The content store: `bundles/<hex digest>`, written once at registration."""
        return self.home / "bundles"

    @property
    def routes(self) -> Path:
        """The gateway's desired state."""
        return self.home / "serving" / "routes.json"

    @property
    def logs(self) -> Path:
        """One log file per service."""
        return self.home / "logs"

    @property
    def services(self) -> Path:
        """What runs now: process, port and URL of each service."""
        return self.home / "services.json"

    @property
    def prefect_home(self) -> Path:
        """The embedded Prefect server's database and profiles; the user's own `~/.prefect` is never touched."""
        return self.home / "prefect"

    @property
    def mlflow_db(self) -> Path:
        """The embedded MLflow server's SQLite file; its artifacts lie beside it."""
        return self.home / "mlflow" / "mlflow.db"

    @property
    def ledger(self) -> str:
        """The ledger's SQLAlchemy URL."""
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"


def load_settings() -> Settings:
    """Reads the settings from the environment.

    Raises:
        BadInput: a variable has a wrong value, or is named `GOLDPATH_…` but is no setting.
    """
    known = [PREFIX + name.upper() for name, field in Settings.model_fields.items() if field.validation_alias is None]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"unset it; the settings are {', '.join(known)}"
            raise BadInput("environment", name, "is no setting of Goldpath", fix)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else PREFIX + name.upper()
        raise BadInput("environment", variable, f"{first['msg']} (got {first['input']!r})", "correct or unset it") from None
