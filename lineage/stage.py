"""One stage at work in its folder: locked, continued after a kill, and proven by a record that is written last."""

import fcntl
import json
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lineage.bundle import MANIFEST, describe_file
from lineage.changes import Change, find_changes
from lineage.errors import BadInput, GoldpathError
from lineage.files import canonical_json, list_files, sha256_file, sha256_text, sync_file, sync_folder, write_json
from lineage.job import Job
from lineage.memory import peak_resident_bytes
from lineage.record import RECORD, Metric, Parent, Record, read_record, verify_outputs, write_record
from lineage.stamp import make_stamp

STARTED = "started.json"
CHANGES = "changes.json"  # an output: what was changed while the stage was under way
KEPT = frozenset({".lock", ".stage.log", STARTED, "job.yaml"})
MOST_SHOWN = 8  # changes in one line
NOT_OUTPUTS = frozenset({RECORD, STARTED, "job.yaml"})


class StageRun:
    """Holds a stage's output folder while its work is done.

    >>> job, config = load_stage(Path("job.yaml"), TrainingConfig)
    >>> with StageRun(job, out) as run:
    ...     if not run.finished:
    ...         run.finish(metrics=train(config, out))

    Attributes:
        fingerprint: the stage's identity; the parents were verified while it was computed.
        finished: the record, where this very stage already finished here; None while there is work to do.
        continues: the identities whose unfinished work in the folder may go on; its own is the first.

    Args:
        precious: a glob of what is too dear to be discarded when the configuration changes: checkpoints.

    Raises (on entry):
        BadInput: the version already holds another result, what is precious was made with another configuration and nobody
            allowed the change, or the folder cannot be written.
        Tampered: a parent's or an own file is not what its record says.
        GoldpathError: another process is at work in the folder.
    """

    def __init__(
        self, job: Job, out: Path, extra_inputs: Mapping[str, str] | None = None, precious: str | None = None
    ) -> None:
        self.job, self.out, self._precious = job, out, precious
        self.inputs = {**job.inputs(), **(extra_inputs or {})}
        self.fingerprint = job.fingerprint(self.inputs)
        self.finished: Record | None = None
        self._lock: IO[str] | None = None
        self._start = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def __enter__(self) -> "StageRun":
        self._take_folder()
        self.finished = finished_record(self.job, self.out, self.fingerprint)
        if self.finished is None:
            self._meet_foreign_work()
            started = {"fingerprint": self.fingerprint, "at": self._started_at}
            write_json(self.out / STARTED, {**started, "config": self.job.config, "inputs": self.inputs})
        return self

    @property
    def continues(self) -> list[str]:
        return [self.fingerprint, *(change["fingerprint"] for change in _read_json(self.out / CHANGES).get("changes", []))]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock:
            self._lock.close()

    def finish(self, metrics: Mapping[str, Metric], data_version: str = "") -> Record:
        """Hashes every output in the folder, then writes the record.

        Hidden files, links and the job file are no outputs.

        Args:
            metrics: the stage's main figures.
            data_version: the DVC version of the data that the stage wrote; "" takes the parents' one.
        """
        job = self.job
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        outputs = {path.relative_to(self.out).as_posix(): path for path in list_files(self.out)}
        for path in outputs.values():  # a power cut must not leave a record of bytes that never reached the disk
            sync_file(path)
        for folder in {folder for path in outputs.values() for folder in path.parents if folder.is_relative_to(self.out)}:
            sync_folder(folder)
        record = Record(
            stage=job.stage,
            name=job.name,
            version=job.version,
            config=job.config,
            fingerprint=self.fingerprint,
            stamp=make_stamp(sha256_text(canonical_json(job.config)), data_version or _inherited_data_version(job)),
            parents={role: _describe_parent(folder) for role, folder in job.parents.items()},
            inputs=self.inputs,
            outputs={name: describe_file(path) for name, path in outputs.items() if name not in NOT_OUTPUTS},
            metrics=dict(metrics),
            argv=[sys.executable, *sys.orig_argv[1:]],
            started_at=self._started_at,
            seconds=round(time.monotonic() - self._start, 3),
            cpu_seconds=round(sum(u.ru_utime + u.ru_stime for u in usage), 3),
            peak_memory_bytes=max(peak_resident_bytes(), usage[1].ru_maxrss * 1024),  # Linux counts ru_maxrss in KiB
        )
        self.finished = write_record(self.out, record)
        (self.out / STARTED).unlink(missing_ok=True)
        return self.finished

    def _take_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_folder(self.out)
        except OSError as error:
            raise BadInput(
                self.out, "", f"cannot be written ({error.strerror})", "choose a folder that you may write"
            ) from None

    def _meet_foreign_work(self) -> None:
        """Unfinished work of the same identity is continued. That of another never happened: it goes, unless it is dear."""
        started = started_fingerprint(self.out)
        if started == self.fingerprint:
            return
        if not started and self._precious and any(self.out.glob(self._precious)):
            return  # they say themselves whose they are
        if not (self.out / STARTED).exists():
            _refuse_strangers(self.out)
            return
        if started and self._precious and any(self.out.glob(self._precious)):
            self._adopt(started)
            return
        found = [path for path in self.out.iterdir() if path.name not in KEPT]
        if found:
            print(f"{self.out}: discarding unfinished work of another configuration", file=sys.stderr)
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (self.out / STARTED).unlink(missing_ok=True)  # last, so that a kill half-way leaves it known whose work this was

    def _adopt(self, started: str) -> None:
        """Takes over the work of another identity where every change was allowed by name; an output tells of it."""
        before, allowed = _read_json(self.out / STARTED), self.job.allow_changes
        changes = find_changes(before.get("config", {}), self.job.config, before.get("inputs", {}), self.inputs)
        refused = [change for change in changes if not change.allowed_by(allowed)]
        if refused or not changes:
            raise BadInput(
                self.out,
                refused[0].field if refused else STARTED,
                f"the checkpoints here were made with another configuration or other inputs ({_listed(refused)})",
                "undo the change; or continue with it (`--allow-change FIELD`, once for each field, section or folder); or "
                f"choose a new `version:`; or delete {self.out} to start again",
            )
        known = _read_json(self.out / CHANGES).get("changes", [])
        made = {"fingerprint": started, "at": self._started_at, "fields": [change.as_json() for change in changes]}
        write_json(self.out / CHANGES, {"changes": [*known, made]})
        print(f"{self.out}: continuing with changes: {_listed(changes)}", file=sys.stderr)


def remove_unfinished(out: Path) -> None:
    """Removes a stage's folder that holds no record.

    Raises:
        BadInput: it holds files that no stage wrote.
        GoldpathError: a process is at work in it.
    """
    with _lock_folder(out):
        if not (out / STARTED).exists():
            _refuse_strangers(out)
        shutil.rmtree(out)


def finished_record(job: Job, out: Path, fingerprint: str) -> Record | None:
    """Returns the verified record of a stage that finished in a folder; None where it did not.

    Raises:
        BadInput: the folder holds the finished stage of another identity.
        Tampered: an output is not what the record says.
    """
    if not (out / RECORD).is_file():
        return None
    record = read_record(out)
    if record.fingerprint != fingerprint:
        raise BadInput(
            out,
            f"version {job.version}",
            f"already holds a finished `{job.stage}` with another configuration or other inputs",
            "choose a new `version:` in the recipe (or `--version`); a finished version never changes",
        )
    verify_outputs(out, record)
    return record


def started_fingerprint(out: Path) -> str | None:
    """Returns the identity of the unfinished work in a folder; None where there is none that can be continued."""
    with suppress(KeyError):
        return str(_read_json(out / STARTED)["fingerprint"])
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object; an empty one where there is none that can be read."""
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _listed(changes: list[Change]) -> str:
    shown = [str(change) for change in changes[:MOST_SHOWN]]
    return "; ".join([*shown, *([f"and {len(changes) - MOST_SHOWN} more"] if len(changes) > MOST_SHOWN else [])])


def _lock_folder(out: Path) -> IO[str]:
    """Returns the open lock of a stage's folder; closing it, or the end of the process, gives it back."""
    lock = (out / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise GoldpathError(f"{out}: another process is running this stage. Fix: wait for it, or end it") from None
    return lock


def _refuse_strangers(out: Path) -> None:
    """Hidden files are no outputs: what a kill left of a file that was being written is no obstacle, and is left alone."""
    strangers = [path.name for path in out.iterdir() if path.name not in KEPT and not path.name.startswith(".")]
    if strangers:
        problem = f"holds {strangers[0]}, but neither a finished nor an unfinished stage"
        raise BadInput(out, "", problem, "choose an empty folder, or delete this one to run the stage again")


def _describe_parent(folder: Path) -> Parent:
    if (folder / RECORD).is_file():
        return Parent(path=str(folder), fingerprint=read_record(folder).fingerprint, sha256=sha256_file(folder / RECORD))
    manifest = folder / MANIFEST
    sha = sha256_file(manifest) if manifest.is_file() else ""
    return Parent(path=str(folder), fingerprint=sha, sha256=sha)


def _inherited_data_version(job: Job) -> str:
    versions = [read_record(folder).stamp.data_version for folder in job.parents.values() if (folder / RECORD).is_file()]
    return next((version for version in versions if version), "")
