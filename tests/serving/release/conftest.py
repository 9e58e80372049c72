"""Houses to release in, each with a ledger and an MLflow database of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from release_house import House

from lineage.privacy import switch_off_telemetry
from serving.config import Places
from serving.release.ledger import Ledger

switch_off_telemetry()


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with all its tables: making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def make_house(tmp_path: Path, empty_mlflow: Path) -> Callable[..., House]:
    def make(gateway: str = "http://127.0.0.1:9", mlflow: str = "") -> House:
        places = Places(
            ledger=f"sqlite:///{tmp_path}/ledger.db",
            bundles=tmp_path / "bundles",
            routes=tmp_path / "serving" / "routes.json",
            gateway=gateway,
            mlflow=mlflow or f"sqlite:///{tmp_path}/mlflow/mlflow.db",
        )
        (tmp_path / "mlflow").mkdir()
        shutil.copy(empty_mlflow, tmp_path / "mlflow" / "mlflow.db")
        return House(tmp_path, places, Ledger(places.ledger))

    return make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()
