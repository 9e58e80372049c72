from pathlib import Path

from serving.endpoint.sticky import choose_arm, session_of
from serving.routes import Arm, Route


def arm(letter: str) -> Arm:
    return Arm(digest="sha256:" + letter * 64, version=letter, bundle=Path("/") / letter)


def canary_sessions(weight: float, letter: str = "b") -> set[str]:
    route = Route(model="m", token=1, stable=arm("a"), canary=arm(letter), weight=weight)
    return {session for session in map(str, range(4000)) if choose_arm(route, session) == "canary"}


def test_the_share_is_the_weight() -> None:
    assert canary_sessions(0) == set()
    assert len(canary_sessions(100)) == 4000
    for weight in (1, 5, 25, 50):
        share, deviation = len(canary_sessions(weight)) / 4000, (weight / 100 * (1 - weight / 100) / 4000) ** 0.5
        assert abs(share - weight / 100) < 4 * deviation


def test_raising_the_weight_moves_nobody_back() -> None:
    assert canary_sessions(5) < canary_sessions(25) < canary_sessions(50)


def test_another_canary_is_tried_by_other_people() -> None:
    both = canary_sessions(25) & canary_sessions(25, "c")
    assert abs(len(both) / 4000 - 0.0625) < 0.02


def test_without_a_canary_everybody_is_stable() -> None:
    assert choose_arm(Route(model="m", token=1, stable=arm("a")), "x") == "stable"


def test_a_session_is_the_header_else_the_user_else_the_address() -> None:
    assert session_of({"x-session-id": "s"}, {"user": "u"}, "1.2.3.4") == "s"
    assert session_of({}, {"user": "u"}, "1.2.3.4") == "u"
    assert session_of({}, {"user": 7}, "1.2.3.4") == "1.2.3.4"
