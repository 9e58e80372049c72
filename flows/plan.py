"""What a recipe would run and what it would reuse: the stages as jobs, and one decision per stage.

A stage is reused when a finished record, of this version or of another, has the same fingerprint: the same
configuration and the same bytes to read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_contracts.config import DataConfig
from data_contracts.sources import source_digests
from data_contracts.tombstones import load_erasures
from evaluation.config import EvaluationConfig
from evaluation.suite import suite_digests
from flows.recipe import NAME, OBJECTIVES, VERSION, Recipe
from lineage.bundle import MANIFEST
from lineage.errors import BadInput, Tampered
from lineage.job import Job
from lineage.record import RECORD, Record, read_record, verify_outputs
from lineage.stage import finished_record, remove_unfinished, started_fingerprint
from training.choices import ROW_KINDS
from training.config import ModelConfig, TrainingJob
from training.hub import find_base

if TYPE_CHECKING:
    from flows.settings import Settings

PACKED: dict[str, str] = {objective: f"packed/{kind}/*" for objective, kind in ROW_KINDS.items()}
TOKENIZER_FILES = ["tokenizer*", "chat_template*", "special_tokens*", "added_tokens*", "vocab*", "merges*", "config.json"]
# What an earlier version grew from was scored with it: the same bytes are not scored twice.
RESOURCES_OF = {"evaluate": {"reuse_samples": True}}
Action = Literal["done", "reuse", "continue", "run", "later"]


@dataclass(frozen=True)
class Step:
    """One stage of a plan: what to run, and where it writes."""

    job: Job
    out: Path

    @property
    def stage(self) -> str:
        """The stage's folder name; `job.stage` is its kind (`gate-0.9.0` is of kind `gate`)."""
        return self.out.name


@dataclass(frozen=True)
class Decision:
    """What will happen to a step.

    Attributes:
        action: `done` finished here before · `reuse` finished under another version · `continue` a killed run goes on ·
            `run` from the start · `later` known once the stages before it have run.
        source: the folder that is reused.
    """

    action: Action
    source: Path | None = None


def steps_of(recipe: Recipe, settings: "Settings", allow_changes: Sequence[str] = ()) -> list[Step]:
    """Returns the recipe's stages from data to evaluation, each with its parents.

    The gate is not among them: what it compares with depends on the champion of the moment (`gate_step`).
    """
    folder = settings.runs / recipe.name / recipe.version
    base = resolve_base(recipe, settings)
    # A model that already exists brings its tokenizer: the data is packed with it, or with one that holds more tokens.
    own = recipe.model.grow_vocabulary and recipe.data.tokenizer
    parents, reads = ({"tokenizer": base} if base and not own else {}), {"tokenizer": TOKENIZER_FILES}
    steps = [_step(recipe, folder / "data", recipe.data.model_dump(mode="json"), parents, reads)]
    previous = base
    for objective in recipe.objectives:
        parents = {"data": folder / "data"} | ({"base": previous} if previous else {})
        reads = {"data": ["tokenizer/*", PACKED[objective]], "base": ["*"] if previous == base else ["bundle/*"]}
        told = TrainingJob(model=_model(recipe, previous, base), training=getattr(recipe, objective))
        steps.append(_step(recipe, folder / objective, told.model_dump(mode="json"), parents, reads))
        previous = folder / objective
    assert previous is not None  # load_recipe refuses a recipe with neither a base nor a training stage
    scored, reads = _models_to_score(recipe, folder, base, previous)
    parents = {"data": folder / "data", **scored}
    steps.append(_step(recipe, folder / "evaluate", recipe.evaluation.model_dump(mode="json"), parents, reads))
    return [replace(step, job=step.job.model_copy(update={"allow_changes": list(allow_changes)})) for step in steps]


def gate_step(recipe: Recipe, settings: "Settings", champion: str | None, champion_scores: Path | None) -> Step:
    """Returns the gate's step: against the champion's scores, or by absolute thresholds where there is no champion."""
    folder = settings.runs / recipe.name / recipe.version
    parents = {"candidate": folder / "evaluate"} | ({"champion": champion_scores} if champion_scores else {})
    out = folder / (f"gate-{champion}" if champion else "gate")
    return _step(recipe, out, recipe.gate.model_dump(mode="json"), parents, {}, kind="gate")


def champion_step(recipe: Recipe, settings: "Settings", champion: str, bundle: Path) -> Step:
    """Returns the step that scores the champion on the candidate's golden sets, for when they changed since its release."""
    folder = settings.runs / recipe.name / recipe.version
    parents = {"data": folder / "data", "candidate": bundle}
    config = recipe.evaluation.model_dump(mode="json")
    return _step(recipe, folder / f"evaluate-{champion}", config, parents, {"data": ["golden/*"]}, kind="evaluate")


def decide(step: Step, settings: "Settings") -> Decision:
    """Decides what happens to a step, without changing anything.

    Raises:
        BadInput: this version already holds another result for the stage.
        Tampered: something that would be read is not what its record says.
    """
    if any(_unfinished(parent, settings) for parent in step.job.parents.values()):
        return Decision("later")
    fingerprint = step.job.fingerprint(step.job.inputs() | source_inputs(step.job, settings))
    if finished_record(step.job, step.out, fingerprint):
        return Decision("done")
    for folder, record in finished_stages(settings, step.job.stage):
        if record.fingerprint == fingerprint and folder != step.out:
            verify_outputs(folder, record)
            return Decision("reuse", folder)
    return Decision("continue" if started_fingerprint(step.out) == fingerprint else "run")


def link_reused(step: Step, source: Path) -> None:
    """Makes a step's folder a relative link to the finished folder that it reuses; atomic, and repeatable after a kill."""
    step.out.parent.mkdir(parents=True, exist_ok=True)
    if step.out.is_dir() and not step.out.is_symlink():
        remove_unfinished(step.out)  # decide() found no record in it
    temporary = step.out.parent / f".{step.stage}.link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(source.resolve(), step.out.parent.resolve()))
    temporary.replace(step.out)


def finished_stages(settings: "Settings", kind: str) -> Iterator[tuple[Path, Record]]:
    """Yields every finished stage of a kind below `runs/`, links left out."""
    for path in sorted(settings.runs.glob(f"*/*/{kind}*/{RECORD}")):
        if path.parent.is_symlink():
            continue
        try:
            record = read_record(path.parent)
        except Tampered:
            continue  # a damaged stage of another version is not reused; whoever reads that version is told
        if record.stage == kind:
            yield path.parent, record


def final_bundle(settings: "Settings", name: str, version: str) -> Path:
    """Returns the release bundle of a version: that of its last training stage.

    Raises:
        BadInput: the version has none.
    """
    folder = settings.runs / name / version
    for objective in reversed(OBJECTIVES):
        if (folder / objective / "bundle" / MANIFEST).is_file() and (folder / objective / RECORD).is_file():
            return folder / objective / "bundle"
    raise BadInput(f"{name}@{version}", "", "has no finished model", f"see what there is with `ls {settings.runs / name}`")


def parse_address(address: str) -> tuple[str, str]:
    """Splits `NAME@VERSION`."""
    name, _, version = address.partition("@")
    if not re.fullmatch(NAME, name) or not re.fullmatch(VERSION, version):
        raise BadInput(f"`{address}`", "", "is not of the form NAME@VERSION", "see `goldpath models` for what there is")
    return name, version


def resolve_base(recipe: Recipe, settings: "Settings") -> Path | None:
    """Returns the folder of the model that the recipe starts from; None where it starts from random weights.

    Raises:
        BadInput: `model.base` is no version, no folder, and no model that the hub gives.
    """
    base = recipe.model.base
    if not base:
        return None
    if "@" in base:
        return final_bundle(settings, *parse_address(base))
    return find_base(base, recipe.model.revision, settings.hub)


def source_inputs(job: Job, settings: "Settings") -> dict[str, str]:
    """Returns digests of what a stage reads besides other stages: raw data and erasures, or an evaluation suite."""
    if job.stage == "data":
        return source_digests(DataConfig.model_validate(job.config)) | load_erasures(settings.home).inputs()
    if job.stage == "evaluate":
        return suite_digests(EvaluationConfig.model_validate(job.config))
    return {}


def _model(recipe: Recipe, previous: Path | None, base: Path | None) -> ModelConfig | None:
    """What a stage is told of its model: nothing where it continues another one, except that the vocabulary may grow."""
    if previous is None:
        return recipe.model
    return ModelConfig(grow_vocabulary=True) if recipe.model.grow_vocabulary and previous == base else None


def _step(
    recipe: Recipe, out: Path, config: dict[str, Any], parents: dict[str, Path], reads: dict[str, list[str]], kind: str = ""
) -> Step:
    job = Job(
        name=recipe.name,
        version=recipe.version,
        stage=kind or out.name,
        config=config,
        parents=parents,
        reads={role: patterns for role, patterns in reads.items() if role in parents},
        resources=recipe.resources.model_dump(mode="json") | RESOURCES_OF.get(kind or out.name, {}),
    )
    return Step(job, out)


def _models_to_score(
    recipe: Recipe, folder: Path, base: Path | None, last: Path
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The candidate, and beside it what it grew from, so that the report shows what each stage brought."""
    models: dict[str, Path] = {"base": base} if base and _has_chat_template(base) else {}
    if recipe.pretrain and not recipe.model.base:
        models["untrained"] = folder / "pretrain"
    models |= {objective: folder / objective for objective in recipe.objectives[:-1]}
    models["candidate"] = last
    files = {"untrained": "initial/*", "base": "*"}
    return models, {"data": ["golden/*"], **{role: [files.get(role, "bundle/*")] for role in models}}


def _has_chat_template(model: Path) -> bool:
    """Whether a model can be asked as served; one that was only pretrained, elsewhere, often cannot."""
    config = model / "tokenizer_config.json"
    inside = config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
    return inside or (model / "chat_template.jinja").is_file()


def _unfinished(parent: Path, settings: "Settings") -> bool:
    """A stage folder of ours that has not finished yet; other folders are checked when they are read."""
    inside = parent.resolve().is_relative_to(settings.runs.resolve())
    return inside and not (parent / RECORD).is_file() and not (parent / MANIFEST).is_file()
