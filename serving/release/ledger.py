"""The ledger: an append-only, hash-chained table of everything that happened to releases. The truth that aliases and
routes are projections of.

>>> ledger = Ledger("sqlite:///ledger.db")
>>> history = ledger.history("pystdlib")
>>> ledger.append(Event.WITHDRAWN, release, actor="ada", payload={"reason": "…"}, expected_head=history.head)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    DDL,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    select,
)
from sqlalchemy.engine import Row, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError
from sqlalchemy.pool import NullPool

from lineage.errors import BadInput, GoldpathError, Tampered
from lineage.files import canonical_json, sha256_text
from serving.release.states import Entry, Event, History, Release, follow

GENESIS = "0" * 64
LOCK_SECONDS = 30
# Taken before the head is read: under READ COMMITTED another append would commit between the read and the write.
WRITE_LOCKS = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "LOCK TABLE release_ledger IN EXCLUSIVE MODE"}
ATTEMPTS = 20  # appends of other models may take the next seq first; each attempt loses to one that succeeded

TABLES = MetaData()
LEDGER = Table(
    "release_ledger",
    TABLES,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("version", String(200), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("event", String(32), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("at", String(40), nullable=False),
    Column("payload", Text, nullable=False),  # canonical JSON text: what was hashed is what is stored
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Index("release_ledger_name", "name", "seq"),
)
for change in ("UPDATE", "DELETE"):
    event.listen(
        LEDGER,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER IF NOT EXISTS release_ledger_no_{change.lower()} BEFORE {change} ON release_ledger "
            "BEGIN SELECT RAISE(ABORT, 'the release ledger is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )


class StaleHead(GoldpathError):
    """Another process appended to the model's history after it was read: read again, decide again."""


def hash_entry(entry: Entry) -> str:
    """Returns the sha256 (64 hex digits) over an entry's canonical JSON, its own `hash` left out."""
    fields = {key: value for key, value in vars(entry).items() if key != "hash"}
    return sha256_text(canonical_json(fields))


class Ledger:
    """Opens the ledger at an SQLAlchemy URL and creates its table where there is none.

    Raises:
        BadInput: the URL is none, or nothing answers there.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _open(url)
            TABLES.create_all(self._engine)
        except (ArgumentError, DatabaseError, ImportError, OSError) as error:
            problem = str(getattr(error, "orig", error))
            fix = "give a database URL that you may write, and install its driver"
            raise BadInput("ledger", _shown(url), f"cannot be opened ({problem})", fix) from None

    def entries(self, name: str | None = None) -> list[Entry]:
        """Returns all entries, or those of one model, oldest first."""
        with self._engine.connect() as connection:
            return _read(connection, name)

    def history(self, name: str) -> History:
        """Returns what the ledger says about one model.

        Raises:
            Tampered: its entries contradict each other.
        """
        return _fold(name, self.entries(name))

    def names(self) -> list[str]:
        """Returns the models that the ledger knows."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(LEDGER.c.name).distinct().order_by(LEDGER.c.name)))

    def champion(self, name: str) -> Release | None:
        """Returns the release that serves a model's stable traffic."""
        return self.history(name).champion

    def previous(self, name: str) -> Release | None:
        """Returns the release that a rollback would bring back."""
        return self.history(name).previous

    def candidates(self, name: str) -> list[Release]:
        """Returns a model's releases on their way to champion, newest last."""
        return self.history(name).candidates

    def story(self, name: str, version: str | None = None) -> list[Entry]:
        """Returns a model's entries, or those of one of its versions, oldest first."""
        return [entry for entry in self.entries(name) if version in (None, entry.version)]

    def register(
        self, name: str, version: str, digest: str, actor: str, payload: Mapping[str, Any], expected_head: int
    ) -> Entry:
        """Appends a version's first entry; see `append`."""
        return self._append(Event.REGISTERED, name, version, digest, actor, payload, expected_head)

    def append(
        self, happened: Event, release: Release, actor: str, payload: Mapping[str, Any], expected_head: int
    ) -> Entry:
        """Appends one entry if the model's history is still the one that the caller decided on.

        Args:
            expected_head: `History.head` as the caller read it.

        Raises:
            StaleHead: the model's history went on since.
            IllegalTransition: the event may not follow; the message says what to do.
        """
        return self._append(happened, release.name, release.version, release.digest, actor, payload, expected_head)

    def verify(self) -> int:
        """Recomputes the whole chain and every transition, and returns the number of entries.

        Raises:
            Tampered: naming the first bad entry.
        """
        previous = GENESIS
        entries = self.entries()
        for number, entry in enumerate(entries, start=1):
            if entry.seq != number:
                raise _tampered(number, "is missing")
            if entry.previous_hash != previous:
                raise _tampered(number, "does not follow the entry before it")
            if hash_entry(entry) != entry.hash:
                raise _tampered(number, "was changed after it was written")
            previous = entry.hash
        for name in {entry.name for entry in entries}:
            _fold(name, [entry for entry in entries if entry.name == name])
        return len(entries)

    def close(self) -> None:
        """Gives the database connections back."""
        self._engine.dispose()

    def _append(
        self,
        happened: Event,
        name: str,
        version: str,
        digest: str,
        actor: str,
        payload: Mapping[str, Any],
        expected_head: int,
    ) -> Entry:
        if not actor.strip():
            raise BadInput("ledger", "actor", "is blank", "say who does it")
        for _ in range(ATTEMPTS):
            try:
                with self._writing() as connection:
                    history = _fold(name, _read(connection, name))
                    if history.head != expected_head:
                        raise StaleHead(
                            f"{name}: the ledger went on to entry {history.head} since entry {expected_head} was read. "
                            "Fix: look at it again, then repeat the command"
                        )
                    entry = _seal(connection, happened, name, version, digest, actor, payload)
                    follow(history, entry)
                    row = {**vars(entry), "payload": canonical_json(entry.payload)}
                    connection.execute(LEDGER.insert(), row)
                return entry
            except IntegrityError:  # on databases without SQLite's write lock: another model's entry took this seq
                continue
        raise StaleHead(f"{name}: the ledger is too busy. Fix: repeat the command")

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect() as connection, connection.begin():
            if lock := WRITE_LOCKS.get(self._engine.dialect.name):
                connection.exec_driver_sql(lock)
            yield connection


def _fold(name: str, entries: Iterable[Entry]) -> History:
    history = History(name)
    for entry in entries:
        try:
            history = follow(history, entry)
        except GoldpathError as error:
            raise _tampered(entry.seq, f"cannot have happened ({error})") from None
    return history


def _tampered(seq: int, problem: str) -> Tampered:
    return Tampered("ledger", f"entry {seq}", problem, "restore the ledger from a backup and find out who wrote to it")


def _shown(url: str) -> str:
    """Returns a URL as an error may show it, without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _open(url: str) -> Engine:
    """SQLite runs in WAL mode, with its own transaction handling off so that `BEGIN IMMEDIATE` is ours to send."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url)
    if not parsed.database or parsed.database == ":memory:":
        raise BadInput(
            "ledger", url, "is not a file, so it would forget every release", "give sqlite:////path/to/ledger.db"
        )
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": LOCK_SECONDS}, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def _read(connection: Connection, name: str | None) -> list[Entry]:
    query = select(LEDGER).order_by(LEDGER.c.seq)
    return [_entry(row) for row in connection.execute(query if name is None else query.where(LEDGER.c.name == name))]


def _entry(row: Row[Any]) -> Entry:
    try:
        return Entry(**{**row._mapping, "event": Event(row.event), "payload": json.loads(row.payload)})
    except ValueError:
        raise _tampered(row.seq, "holds no event or no payload that this ledger writes") from None


def _seal(
    connection: Connection,
    happened: Event,
    name: str,
    version: str,
    digest: str,
    actor: str,
    payload: Mapping[str, Any],
) -> Entry:
    newest = connection.execute(select(LEDGER.c.seq, LEDGER.c.hash).order_by(LEDGER.c.seq.desc()).limit(1)).first()
    fields: dict[str, Any] = {
        "seq": newest.seq + 1 if newest else 1,
        "name": name,
        "version": version,
        "digest": digest,
        "event": happened,
        "actor": actor,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "payload": json.loads(canonical_json(payload)),
        "previous_hash": newest.hash if newest else GENESIS,
    }
    return Entry(**fields, hash=hash_entry(Entry(**fields, hash="")))
