"""A recipe: one YAML file that describes one model release. This room only composes the sections that the stages own."""

from pathlib import Path
from typing import Any

from pydantic import Field

from data_contracts.config import DataConfig
from data_contracts.sources.listing import absolute_path
from evaluation.config import EvaluationConfig, GatePolicy
from evaluation.suite import load_suite
from lineage.errors import BadInput
from lineage.section import Section, parse, read_yaml
from serving.config import CanaryPolicy
from training.config import ModelConfig, TrainingConfig
from training.launch_files import settle
from training.resources import Resources

SHIPPED = Path(__file__).parent / "recipes"
NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
VERSION = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}"
OBJECTIVES = ("pretrain", "sft", "dpo", "kto")


class Recipe(Section):
    """One model release, from its data to its canary.

    Attributes:
        name: the model's name; all its versions share it.
        version: this release's version. A finished version never changes: edit the recipe, then raise this.
        pretrain, sft, dpo, kto: the training stages, in this order; leave out what the release does not need.
        gate, release: the policies of the two decisions. Neither has a default: no decision without a written policy.
        resources: how to execute; never part of the identity.
    """

    name: str = Field(pattern=f"^{NAME}$")
    version: str = Field(pattern=f"^{VERSION}$")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    pretrain: TrainingConfig | None = None
    sft: TrainingConfig | None = None
    dpo: TrainingConfig | None = None
    kto: TrainingConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GatePolicy
    release: CanaryPolicy
    resources: Resources = Resources()

    @property
    def objectives(self) -> list[str]:
        """The training stages that this recipe has, in the order in which they run."""
        return [objective for objective in OBJECTIVES if getattr(self, objective) is not None]


def load_recipe(where: str, version: str | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        where: a file, or the name of a recipe that Goldpath ships (`pystdlib`).
        version: takes the place of the file's `version:`.

    Raises:
        BadInput: naming file, field and fix.
    """
    path = find_recipe(where)
    value = read_yaml(path)
    if version is not None:
        value["version"] = version
    for objective in OBJECTIVES:
        if isinstance(value.get(objective), dict):
            value[objective].setdefault("objective", objective)
    try:
        resolve_paths(value, path.parent)
    except ValueError:
        raise BadInput(path, "", "holds a path with a null byte", "correct that path") from None
    recipe = parse(Recipe, value, path)
    for objective in recipe.objectives:
        if (named := getattr(recipe, objective).objective) != objective:
            raise BadInput(
                path, f"{objective}.objective", f"is `{named}`", f"remove it: the section's name says `{objective}`"
            )
    if not recipe.objectives and not recipe.model.base:
        raise BadInput(
            path, "pretrain", "there is nothing to train and no `model.base`", "add `pretrain:`, `sft:`, `dpo:` or `kto:`"
        )
    if recipe.model.grow_vocabulary and not recipe.model.base:
        fix = "leave it out: a new model gets the tokenizer's vocabulary"
        raise BadInput(path, "model.grow_vocabulary", "there is no `model.base` to grow", fix)
    check_gate(recipe, path)
    resources = recipe.resources
    for number, objective in enumerate(recipe.objectives):  # the file must agree with all of them
        resources, _ = settle(recipe.resources, getattr(recipe, objective), path, tell=number == 0)
    return recipe.model_copy(update={"resources": resources})


def check_gate(recipe: Recipe, path: Path) -> None:
    """Checks that the suite exists and answers what the gate asks: before training is paid for, not after.

    Raises:
        BadInput: naming the rule.
    """
    directions = {task.full_name: task.direction for task in load_suite(recipe.evaluation.suite).tasks}
    for number, rule in enumerate(recipe.gate.metrics):
        field = f"gate.metrics.{number}"
        if rule.metric not in directions:
            problem = f"suite `{recipe.evaluation.suite}` does not score {rule.metric}"
            raise BadInput(path, f"{field}.metric", problem, f"take one of {', '.join(directions)}, or another suite")
        if (direction := directions[rule.metric]) != rule.direction:
            problem = f"is `{rule.direction}`, but of {rule.metric} {direction} is better"
            raise BadInput(path, f"{field}.direction", problem, f"write `{direction}`")


def find_recipe(where: str) -> Path:
    """Returns the file of a recipe, by path or by the name of a shipped one."""
    path = Path(where)
    shipped = SHIPPED / f"{where}.yaml"
    if path.exists() or not shipped.exists():
        return path
    return shipped


def resolve_paths(value: dict[str, Any], folder: Path) -> None:
    """Makes the recipe's own paths absolute: they are written relative to the recipe, wherever the command is typed."""
    data, model = value.get("data"), value.get("model")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = absolute_path(source["path"], str(source.get("kind")), folder)
    places = [(data, "tokenizer"), (data, "chat_template")]
    places += [(value.get("resources"), "accelerate_config"), (value.get("resources"), "deepspeed_config")]
    if isinstance(model, dict) and (folder / str(model.get("base"))).exists():  # else it is NAME@VERSION or a hub name
        places.append((model, "base"))
    places.append((model, "config"))
    if isinstance(data, dict):
        if str(data.get("toxicity")).endswith(".txt"):  # else it names a classifier
            places.append((data, "toxicity"))
        if isinstance(against := data.get("decontaminate_against"), list):
            data["decontaminate_against"] = [str((folder / path).resolve()) for path in map(str, against)]
    for section, key in places:
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
            section[key] = str((folder / section[key]).resolve())
