"""A house to release in: finished runs with bundles and gate verdicts, and the places of a release. All real, all small."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lineage.bundle import seal_bundle
from lineage.files import write_json
from lineage.job import Job
from lineage.record import RECORD, read_record, write_record
from lineage.stage import StageRun
from serving.config import Places
from serving.release.approval import approve
from serving.release.ledger import Ledger
from serving.release.registry import record_gate, register
from serving.release.states import Event, Release

NAME = "m"


@dataclass
class House:
    """A ledger with its places, and runs to register in it."""

    root: Path
    places: Places
    ledger: Ledger

    def run(self, version: str, content: str = "", dirty: bool = False, bundle: Path | None = None) -> Path:
        """Finishes a training stage whose bundle's bytes depend on `content`; returns its folder."""
        folder = self.root / "runs" / NAME / version / "sft"
        with StageRun(Job(name=NAME, version=version, stage="sft", config={"content": content}), folder) as run:
            if bundle:
                shutil.copytree(bundle, folder / "bundle")
            else:
                (folder / "bundle" / "part").mkdir(parents=True)
                (folder / "bundle" / "model.safetensors").write_text(f"weights {version} {content}", encoding="utf-8")
                (folder / "bundle" / "part" / "config.json").write_text("{}", encoding="utf-8")
                seal_bundle(folder / "bundle")
            run.finish({}, data_version="d41d8.dir")
        self.stamp(folder, dirty)
        return folder

    def stamp(self, folder: Path, dirty: bool) -> None:
        """Makes a record's checkout clean or dirty, whatever the one that the tests run in is."""
        record = read_record(folder)
        stamp = record.stamp.model_copy(update={"dirty": dirty, "commit": "0123abc"})
        write_record(folder, record.model_copy(update={"stamp": stamp}))

    def gate(self, version: str, digest: str, verdict: str = "pass", attempt: str = "gate") -> Path:
        """Finishes an evaluation of a digest and a gate on it, against the champion of now; returns the gate's folder."""
        folder = self.root / "runs" / NAME / version
        if not (folder / "evaluate" / RECORD).is_file():
            with StageRun(Job(name=NAME, version=version, stage="evaluate", config={}), folder / "evaluate") as run:
                scores = {"models": {"candidate": {"digest": digest, "metrics": {}}}}
                write_json(folder / "evaluate" / "scores.json", scores)
                run.finish({})
        champion = self.ledger.champion(NAME)
        parents = {"champion": folder.parent / champion.version / "evaluate"} if champion else {}
        job = Job(
            name=NAME,
            version=version,
            stage="gate",
            config={"attempt": attempt},
            parents={"candidate": folder / "evaluate", **parents},
        )
        with StageRun(job, folder / attempt) as run:
            write_json(folder / attempt / "verdict.json", {"verdict": verdict, "reasons": [f"{attempt}: {verdict}"]})
            run.finish({"verdict": verdict})
        return folder / attempt

    def registered(self, version: str, content: str = "", bundle: Path | None = None) -> Release:
        """Registers a version by ada."""
        return register(self.ledger, self.places, NAME, version, self.run(version, content, bundle=bundle), "ada")

    def gated(self, version: str, verdict: str = "pass", bundle: Path | None = None) -> Release:
        """Registers and gates a version."""
        release = self.registered(version, bundle=bundle)
        return record_gate(self.ledger, NAME, version, self.gate(version, release.digest, verdict), "ci")

    def approved(self, version: str, bundle: Path | None = None) -> Release:
        """Registers and gates a version, and lets bob approve it."""
        self.gated(version, bundle=bundle)
        approve(self.ledger, self.places, NAME, version, "bob", "looks right")
        return self.ledger.history(NAME).release(version)

    def crown(self, version: str, bundle: Path | None = None) -> Release:
        """Makes a version champion in the ledger, without a canary's traffic."""
        self.approved(version, bundle)
        for event in (Event.CANARY_STARTED, Event.PROMOTED):
            history = self.ledger.history(NAME)
            self.ledger.append(event, history.release(version), "driver", {}, history.head)
        return self.ledger.history(NAME).release(version)


def write_probes(path: Path, questions: dict[str, str]) -> Path:
    """Writes a probe set of question → answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = [{"id": f"p{i}", "kind": "probe", "question": q, "answer": a} for i, (q, a) in enumerate(questions.items())]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path
