import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from lineage.errors import BadInput
from serving.routes import Arm, Route, StaleToken, read_routes, set_route


def arm(letter: str) -> Arm:
    return Arm(digest="sha256:" + letter * 64, version=letter, bundle=Path("/bundles") / letter)


def test_a_route_comes_back_as_it_was_set(tmp_path: Path) -> None:
    path = tmp_path / "serving" / "routes.json"
    assert read_routes(path).routes == {}
    route = Route(model="m", token=3, stable=arm("a"), canary=arm("b"), weight=5)
    set_route(path, route)
    set_route(path, Route(model="other", token=1, stable=arm("c")))
    assert read_routes(path).routes["m"] == route
    assert set(read_routes(path).routes) == {"m", "other"}
    assert list(route.arms()) == ["stable", "canary"]


def test_a_stale_token_is_refused_and_an_equal_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    set_route(path, Route(model="m", token=7, stable=arm("a")))
    before = path.read_bytes()
    with pytest.raises(StaleToken, match="token 6 is older than 7"):
        set_route(path, Route(model="m", token=6, stable=arm("b")))
    assert path.read_bytes() == before
    set_route(path, Route(model="m", token=7, stable=arm("a"), canary=arm("b"), weight=25))
    assert read_routes(path).routes["m"].weight == 25


def test_concurrent_writers_lose_no_route(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: set_route(path, Route(model=f"m{n}", token=1, stable=arm("a"))), range(24)))
    assert len(read_routes(path).routes) == 24
    assert [name.name for name in tmp_path.iterdir() if not name.name.startswith(".")] == ["routes.json"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 5, "stable": arm("a")}, "weight needs a canary"),
        ({"weight": 50, "canary": arm("a")}, "without a stable arm"),
        ({"weight": 101, "stable": arm("a"), "canary": arm("b")}, "less than or equal to 100"),
        ({"token": -1}, "greater than or equal to 0"),
    ],
)
def test_a_route_that_leaves_sessions_without_an_arm_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Route.model_validate({"model": "m", "token": 1, **fields})


def test_a_first_release_has_a_canary_alone(tmp_path: Path) -> None:
    for weight in (0, 100):
        set_route(tmp_path / "routes.json", Route(model="m", token=1, canary=arm("a"), weight=weight))


@pytest.mark.parametrize(
    ("text", "field"),
    [("{", ""), (json.dumps({"routes": {"m": {"token": 1}}}), "routes.m.model"), ('{"rotes": {}}', "rotes")],
)
def test_a_broken_routes_file_is_named(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "routes.json"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_routes(path)
    assert (caught.value.where, caught.value.field) == (str(path), field)
