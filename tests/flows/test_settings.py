"""Settings come from the environment, and a wrong one is one clear error."""

from pathlib import Path

import pytest

from flows.settings import load_settings
from lineage.errors import BadInput


def test_the_defaults_lie_below_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.home == tmp_path / ".goldpath"
    paths = (settings.runs, settings.bundles, settings.routes, settings.logs, settings.prefect_home, settings.mlflow_db)
    assert all(path.is_relative_to(settings.home) for path in paths)
    assert settings.ledger == f"sqlite:///{tmp_path}/.goldpath/ledger.db"
    assert not settings.home.exists()


def test_servers_of_others_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://flows.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    monkeypatch.setenv("GOLDPATH_LEDGER_URL", "postgresql://ledger.example/goldpath")
    settings = load_settings()
    assert settings.prefect_api_url == "http://flows.example/api"
    assert settings.mlflow_tracking_uri == "http://tracking.example"
    assert settings.ledger == "postgresql://ledger.example/goldpath"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GOLDPATH_HOME", "/srv/what?", "GOLDPATH_HOME: Value error, `?`, `#` and `%` mean something"),
        ("GOLDPATH_HOEM", "/srv", "did you mean `GOLDPATH_HOME`?"),
        ("GOLDPATH_PREFECT_PORT", "http", "GOLDPATH_PREFECT_PORT: Input should be a valid integer"),
        ("GOLDPATH_GATEWAY_PORT", "70000", "GOLDPATH_GATEWAY_PORT: Input should be less than or equal to 65535"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as caught:
        load_settings()
    assert said in str(caught.value)
    assert caught.value.field == name
