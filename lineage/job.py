"""The job file: everything that one stage command needs, so that a person can replay by hand what a flow started."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from lineage.bundle import MANIFEST, describe_file, verify_bundle
from lineage.errors import BadInput
from lineage.files import list_files
from lineage.fingerprint import fingerprint
from lineage.record import RECORD, read_record, verify_outputs
from lineage.section import Section, SectionType, parse, read_yaml


class Job(Section):
    """One stage of one version, as written to `<out>/job.yaml` and read by `python -m <room> --config job.yaml`.

    Attributes:
        name: the model's name, such as `pystdlib`.
        version: the version's name, such as `1.0.0`.
        stage: `data`, `pretrain`, `sft`, `dpo`, `kto`, `evaluate` or `gate`.
        config: the stage's section; the stage's own folder knows its model.
        parents: where the stage reads from, by role: a folder with a record, a release bundle, or a plain folder.
        reads: which files of each parent the stage reads, as `fnmatch` patterns (`*` crosses folders); none listed: all.
        resources: how to execute (processes, device, engine); never part of the identity.
        allow_changes: what may differ from the unfinished run that this one continues (`lineage.changes`); never part of
            the identity.
    """

    name: str
    version: str
    stage: str
    config: dict[str, Any]
    parents: dict[str, Path] = Field(default_factory=dict)
    reads: dict[str, list[str]] = Field(default_factory=dict)
    resources: dict[str, Any] = Field(default_factory=dict)
    allow_changes: list[str] = Field(default_factory=list)

    def inputs(self) -> dict[str, str]:
        """Verifies what the stage reads, and returns a sha256 per input as `role/path`; a bundle counts as one input.

        Raises:
            BadInput: a parent is missing or did not finish.
            Tampered: a file is not what its record or manifest says.
        """
        found: dict[str, str] = {}
        for role, folder in self.parents.items():
            found.update({f"{role}/{name}": sha for name, sha in _digests(folder, self.reads.get(role, ["*"])).items()})
        return found

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """Returns the stage's identity over its configuration and the digests of what it reads (`inputs()` and sources)."""
        return fingerprint(self.stage, self.config, inputs)


def load_stage(path: Path, model: type[SectionType]) -> tuple[Job, SectionType]:
    """Reads a job file (YAML or JSON) and its section, and fills the section's defaults into the job's identity.

    Raises:
        BadInput: naming file and field.
    """
    job = parse(Job, read_yaml(path), path)
    config = parse(model, job.config, path, "config")
    return job.model_copy(update={"config": config.model_dump(mode="json")}), config


def dump_job(job: Job) -> str:
    """Returns the job file's text. JSON is YAML too, and it has one canonical form."""
    return json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _digests(folder: Path, patterns: list[str]) -> dict[str, str]:
    if (folder / RECORD).is_file():
        record = read_record(folder)
        names = [name for name in record.outputs if _matches(name, patterns)]
        verify_outputs(folder, record, names)
        return {name: record.outputs[name].sha256 for name in sorted(names)}
    if (folder / MANIFEST).is_file():
        return {"digest": verify_bundle(folder)}
    if folder.is_dir():
        found = list_files(folder, linked=True)  # a model's files may be links into a store: they are read all the same
        files = {path.relative_to(folder).as_posix(): path for path in found}
        return {name: describe_file(path).sha256 for name, path in files.items() if _matches(name, patterns)}
    raise BadInput(
        folder, "", "does not exist or its stage did not finish (no record.json)", "run the stage before it first"
    )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
