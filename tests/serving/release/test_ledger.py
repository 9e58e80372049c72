"""The ledger under many writers, under tampering, and against impossible histories."""

import sqlite3
import threading
from pathlib import Path

import pytest

from lineage.errors import BadInput, Tampered
from serving.release.ledger import Ledger, StaleHead, hash_entry
from serving.release.states import Event, IllegalTransition, State

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


def register(ledger: Ledger, version: str, name: str = "m") -> None:
    ledger.register(name, version, DIGEST, "ada", {}, ledger.history(name).head)


def append(ledger: Ledger, event: Event, version: str, name: str = "m", **payload: object) -> None:
    history = ledger.history(name)
    ledger.append(event, history.release(version), "bob", payload, history.head)


def make_champion(ledger: Ledger, version: str, name: str = "m") -> None:
    register(ledger, version, name)
    for event in (Event.GATED, Event.APPROVED, Event.CANARY_STARTED):
        append(ledger, event, version, name)
    append(ledger, Event.CANARY_STEP, version, name, weight=100)
    append(ledger, Event.PROMOTED, version, name)


def test_a_release_walks_to_champion_and_its_predecessor_is_superseded(ledger: Ledger) -> None:
    make_champion(ledger, "1")
    make_champion(ledger, "2")
    history = ledger.history("m")
    assert history.champion
    assert history.champion.version == "2"
    assert history.previous
    assert history.previous.version == "1"
    assert history.release("1").state is State.SUPERSEDED
    assert history.candidates == []


def test_rolling_the_champion_back_brings_the_previous_one_back(ledger: Ledger) -> None:
    make_champion(ledger, "1")
    make_champion(ledger, "2")
    append(ledger, Event.ROLLED_BACK, "2")
    history = ledger.history("m")
    assert history.champion
    assert history.champion.version == "1"
    assert history.champion.state is State.CHAMPION
    assert history.previous is None
    with pytest.raises(IllegalTransition, match="only champion"):
        append(ledger, Event.ROLLED_BACK, "1")


def test_a_withdrawn_version_cannot_be_rolled_back_to(ledger: Ledger) -> None:
    for version in ("1", "2", "3"):
        make_champion(ledger, version)
    append(ledger, Event.WITHDRAWN, "2")
    append(ledger, Event.ROLLED_BACK, "3")
    champion = ledger.champion("m")
    assert champion
    assert champion.version == "1"


def test_a_champion_that_returns_appears_once_among_the_reigns(ledger: Ledger) -> None:
    for version in ("1", "2"):
        make_champion(ledger, version)
    for event in (Event.APPROVED, Event.CANARY_STARTED, Event.PROMOTED):
        append(ledger, event, "1")
    assert ledger.history("m").reigns == ("2", "1")


@pytest.mark.parametrize(
    ("path", "event", "advice"),
    [
        ([], Event.APPROVED, "record its gate verdict"),
        ([Event.GATED], Event.CANARY_STARTED, "approve or reject"),
        ([Event.GATED, Event.REJECTED], Event.APPROVED, "build a new version"),
        ([Event.GATED, Event.APPROVED], Event.PROMOTED, "start its canary"),
        ([Event.GATED, Event.APPROVED, Event.GATED], Event.CANARY_STARTED, "approve or reject"),
        ([Event.GATED, Event.APPROVED, Event.CANARY_STARTED], Event.WITHDRAWN, "wait for its canary"),
        ([Event.GATED, Event.APPROVED, Event.CANARY_STARTED, Event.ROLLED_BACK], Event.CANARY_STARTED, "approve it afresh"),
    ],
)
def test_an_illegal_transition_says_what_to_do_and_writes_nothing(
    ledger: Ledger, path: list[Event], event: Event, advice: str
) -> None:
    register(ledger, "1")
    for step in path:
        append(ledger, step, "1")
    before = len(ledger.entries())
    with pytest.raises(IllegalTransition, match=advice):
        append(ledger, event, "1")
    assert len(ledger.entries()) == before


def test_a_version_is_registered_once(ledger: Ledger) -> None:
    register(ledger, "1")
    with pytest.raises(IllegalTransition, match="choose a new version"):
        register(ledger, "1")


def test_only_one_canary_of_a_model_runs_but_other_models_are_free(ledger: Ledger) -> None:
    for name, version in (("m", "1"), ("m", "2"), ("other", "1")):
        register(ledger, version, name)
        append(ledger, Event.GATED, version, name)
        append(ledger, Event.APPROVED, version, name)
    append(ledger, Event.CANARY_STARTED, "1")
    append(ledger, Event.CANARY_STARTED, "1", "other")
    with pytest.raises(IllegalTransition, match="m@1 is in its canary"):
        append(ledger, Event.CANARY_STARTED, "2")


def test_a_rejected_former_champion_is_no_way_back(ledger: Ledger) -> None:
    for version in ("1", "2"):
        register(ledger, version)
        for event in (Event.GATED, Event.APPROVED, Event.CANARY_STARTED, Event.PROMOTED):
            append(ledger, event, version)
    append(ledger, Event.GATED, "1")
    append(ledger, Event.REJECTED, "1")
    assert ledger.history("m").previous is None
    with pytest.raises(IllegalTransition, match="only champion"):
        append(ledger, Event.ROLLED_BACK, "2")


def test_a_decision_on_an_old_head_is_refused(ledger: Ledger) -> None:
    register(ledger, "1")
    history = ledger.history("m")
    append(ledger, Event.GATED, "1")
    with pytest.raises(StaleHead):
        ledger.append(Event.REJECTED, history.release("1"), "bob", {}, history.head)


def test_another_model_s_entries_do_not_make_a_head_stale(ledger: Ledger) -> None:
    register(ledger, "1")
    history = ledger.history("m")
    register(ledger, "1", "other")
    entry = ledger.append(Event.GATED, history.release("1"), "bob", {}, history.head)
    assert entry.seq == 3


def test_twenty_threads_promote_and_one_champion_wins(ledger: Ledger, tmp_path: Path) -> None:
    versions = [str(number) for number in range(20)]
    for version in versions:
        register(ledger, version)
        append(ledger, Event.GATED, version)
        append(ledger, Event.APPROVED, version)
    barrier, lost = threading.Barrier(20), []

    def promote(version: str) -> None:
        own = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        history = own.history("m")
        barrier.wait()
        try:
            own.append(Event.CANARY_STARTED, history.release(version), version, {}, history.head)
            append(own, Event.PROMOTED, version)
        except (StaleHead, IllegalTransition) as error:
            lost.append(error)

    threads = [threading.Thread(target=promote, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 19
    promoted = [entry for entry in ledger.entries("m") if entry.event is Event.PROMOTED]
    champions = [release for release in ledger.history("m").releases.values() if release.state is State.CHAMPION]
    assert len(promoted) == len(champions) == 1
    ledger.verify()


def test_concurrent_writers_of_many_models_keep_one_unbroken_chain(ledger: Ledger, tmp_path: Path) -> None:
    def write(name: str) -> None:
        make_champion(Ledger(f"sqlite:///{tmp_path}/ledger.db"), "1", name)

    threads = [threading.Thread(target=write, args=(f"m{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify() == 8 * 6
    assert len(ledger.names()) == 8


def tamper(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER IF EXISTS release_ledger_no_update")
        database.execute("DROP TRIGGER IF EXISTS release_ledger_no_delete")
        database.execute(statement)
    database.close()


@pytest.mark.parametrize("statement", ["UPDATE release_ledger SET actor = 'eve'", "DELETE FROM release_ledger"])
def test_the_table_refuses_changes(ledger: Ledger, tmp_path: Path, statement: str) -> None:
    register(ledger, "1")
    with sqlite3.connect(tmp_path / "ledger.db") as database, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("UPDATE release_ledger SET actor = 'eve' WHERE seq = 3", "entry 3: was changed"),
        ('UPDATE release_ledger SET payload = \'{"reason":"fine"}\' WHERE seq = 4', "entry 4: was changed"),
        ("UPDATE release_ledger SET payload = '{' WHERE seq = 4", "entry 4: holds no event"),
        ("UPDATE release_ledger SET event = 'crowned' WHERE seq = 2", "entry 2: holds no event"),
        ("DELETE FROM release_ledger WHERE seq = 3", "entry 3: is missing"),
        ("UPDATE release_ledger SET previous_hash = hash WHERE seq = 2", "entry 2: does not follow"),
    ],
)
def test_verify_names_the_first_bad_entry(ledger: Ledger, tmp_path: Path, statement: str, bad: str) -> None:
    make_champion(ledger, "1")
    assert ledger.verify() == 6
    tamper(tmp_path, statement)
    with pytest.raises(Tampered, match=bad):
        ledger.verify()


def test_a_forged_row_with_a_right_hash_is_found_by_the_chain(ledger: Ledger, tmp_path: Path) -> None:
    make_champion(ledger, "1")
    entry = ledger.entries()[2]
    forged = hash_entry(type(entry)(**{**vars(entry), "actor": "eve"}))
    tamper(tmp_path, f"UPDATE release_ledger SET actor = 'eve', hash = '{forged}' WHERE seq = 3")
    with pytest.raises(Tampered, match="entry 4: does not follow"):
        ledger.verify()


def test_an_impossible_history_with_a_right_chain_is_found(ledger: Ledger, tmp_path: Path) -> None:
    register(ledger, "1")
    first = ledger.entries()[0]
    fields = {**vars(first), "seq": 2, "event": Event.PROMOTED, "previous_hash": first.hash}
    forged = type(first)(**fields)
    columns = {**vars(forged), "event": "promoted", "payload": "{}", "hash": hash_entry(forged)}
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        marks = ", ".join("?" * len(columns))
        database.execute(f"INSERT INTO release_ledger ({', '.join(columns)}) VALUES ({marks})", list(columns.values()))
    database.close()
    with pytest.raises(Tampered, match="entry 2: cannot have happened"):
        ledger.verify()


@pytest.mark.parametrize(
    "url", ["sqlite://", "nonsense", "sqlite:////proc/nowhere/ledger.db", "postgresql+psycopg9://host/db"]
)
def test_a_url_that_cannot_hold_a_ledger_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="ledger"):
        Ledger(url)


def test_a_blank_actor_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="actor"):
        ledger.register("m", "1", DIGEST, "  ", {}, 0)
