from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_processes import Running, make_bundle, running

from serving.routes import Arm


@pytest.fixture(scope="session")
def bundle_a(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    folder = tmp_path_factory.mktemp("bundle-a") / "bundle"
    return Arm(digest=make_bundle(folder, seed=1), version="1.0.0", bundle=folder)


@pytest.fixture(scope="session")
def bundle_b(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    folder = tmp_path_factory.mktemp("bundle-b") / "bundle"
    return Arm(digest=make_bundle(folder, seed=2), version="1.1.0", bundle=folder)


@pytest.fixture(scope="session")
def endpoint(bundle_a: Arm) -> Iterator[Running]:
    with running("endpoint", "--bundle", str(bundle_a.bundle), "--port", "0", "--model", "m", "--threads", "1") as started:
        yield started


@pytest.fixture
def routes_file(tmp_path: Path) -> Path:
    return tmp_path / "serving" / "routes.json"


@pytest.fixture
def gateway(routes_file: Path) -> Iterator[Running]:
    with running("gateway", "--routes", str(routes_file), "--port", "0") as started:
        yield started
