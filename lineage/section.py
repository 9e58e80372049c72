"""The strict base of all configuration, and its loader: a wrong key is one clear error, never a silent default."""

import difflib
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lineage.errors import BadInput


class Section(BaseModel):
    """A frozen configuration section that refuses unknown keys, so that a misspelt key is an error and not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


SectionType = TypeVar("SectionType", bound=BaseModel)


class _AsWritten(yaml.SafeLoader):
    """Reads numbers, dates and the like as the text that they are; only `<<` keeps its meaning."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  (as PyYAML declares it)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping from a file. Its `version` is text as it is written: YAML would make 1.10 the number 1.1.

    Raises:
        BadInput: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except OSError as error:
        raise BadInput(path, "", f"cannot be read ({error.strerror})", "give the path of an existing file") from None
    except UnicodeDecodeError as error:
        raise BadInput(path, f"byte {error.start}", "is not UTF-8", "save the file as UTF-8") from None
    except RecursionError:
        raise BadInput(path, "", "is nested too deeply", "write it flatter") from None
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        raise BadInput(
            path, "", f"holds a value that cannot be read ({error})", "correct it, or put it in quotes"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else ""
        raise BadInput(path, line, "is not valid YAML", "check indentation and quotes there") from None
    if not isinstance(value, dict):
        raise BadInput(path, "", "does not hold a mapping of keys", "start with `name:`; see flows/recipes/")
    if isinstance(value.get("version"), (bool, int, float, date)):
        value["version"] = str(yaml.load(text, Loader=_AsWritten)["version"])
    return value


def parse(model: type[SectionType], value: Any, where: str | Path, prefix: str = "") -> SectionType:
    """Validates a value as a section.

    Args:
        where: the file that the value came from, for the error.
        prefix: the dotted path of the value in that file, for the error.

    Raises:
        BadInput: naming the first wrong field and, for an unknown key, the known key that is nearest to it.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key is also a missing one; the misspelling is what the person can see.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        parts = [str(part) for part in first["loc"]]
        field = ".".join([prefix, *parts] if prefix else parts)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], _keys_at(model, parts[:-1]), n=1)
            fix = f"did you mean `{near[0]}`?" if near else "remove it"
            raise BadInput(where, field, "unknown key", fix) from None
        if first["type"] == "missing":
            raise BadInput(where, field, "is missing", "add it") from None
        problem = first["msg"].removeprefix("Value error, ")
        raise BadInput(where, field, f"{problem} (got {first['input']!r})", "correct the value") from None


def _keys_at(model: type[BaseModel], parts: list[str]) -> list[str]:
    """Returns the keys that a model allows at a dotted path; follows nested sections, stops at anything else."""
    for part in parts:
        field = model.model_fields.get(part)
        nested = _types_in(field.annotation) if field else []
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _types_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _types_in(part)]
