"""Brings the forms that the field's data sets have into one, and tells from a row's columns which kind of row it is.

The forms are those of TRL 1.16 (`docs/source/dataset_formats.md`, `trl/data_utils.py`): standard and conversational,
preferences with an explicit and an implicit prompt, ShareGPT's `from` and `value`; and whole transcripts in one text, as
Anthropic's HH-RLHF has them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from data_contracts.config import RowKind
from data_contracts.sources.mapping import OPTIONAL

Guess = RowKind | Literal["golden"]
TURNS = ("messages", "prompt", "completion", "chosen", "rejected")
GOLDEN = frozenset({"closed_book", "choice", "heldout", "format"})
_SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "bard": "assistant"}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_HH = {"Human": "user", "Assistant": "assistant"}


def to_form(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row in the one form that the schemas know.

    Raises:
        ValueError: a transcript does not end with an answer.
    """
    row = {name: part for name, part in value.items() if part is not None or name not in OPTIONAL}
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    if "conversations" in row and "messages" not in row:
        row["messages"] = row.pop("conversations")
    if isinstance(row.get("messages"), str):  # tables without lists, CSV above all, hold them as text
        row["messages"] = _read_list(row["messages"])
    for name in TURNS:
        if isinstance(row.get(name), list):
            row[name] = [_turn(turn) for turn in row[name]]
    if "chosen" in row and "rejected" in row:
        _find_prompt(row)
    return row


def guess_kind(value: Mapping[str, Any]) -> Guess | None:
    """Returns what a row in its one form is, by its columns; None where they do not say."""
    names = value.keys()
    if isinstance(value.get("kind"), str) and value["kind"] in GOLDEN:
        return "golden"
    if {"chosen", "rejected"} <= names:
        return "preference"
    if {"prompt", "completion", "label"} <= names:
        return "unpaired"
    if "messages" in names or {"prompt", "completion"} <= names:
        return "sft"
    return "pretrain" if "text" in names else None


def golden_kind(value: Mapping[str, Any]) -> dict[str, str]:
    """Returns the `kind` of a golden item by the column that no other kind has; nothing where none is there."""
    for name, kind in (("choices", "choice"), ("pattern", "format"), ("answer", "closed_book"), ("text", "heldout")):
        if name in value:
            return {"kind": kind}
    return {}


def _find_prompt(row: dict[str, Any]) -> None:
    """Takes the prompt out of two answers that both begin with it, where it stands nowhere else."""
    if _is_transcript(row["chosen"]) and _is_transcript(row["rejected"]) and "prompt" not in row:
        row["chosen"], row["rejected"] = _read_transcript(row["chosen"]), _read_transcript(row["rejected"])
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if type(chosen) is not type(rejected) or not isinstance(chosen, (str, list)) or not (chosen and rejected):
        return
    if isinstance(prompt, list) and isinstance(chosen, list):  # said twice: in a column of its own, and in both answers
        length = len(prompt)
        if len(chosen) > length and len(rejected) > length and chosen[:length] == rejected[:length] == prompt:
            row["chosen"], row["rejected"] = chosen[length:], rejected[length:]
    elif prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        length = _common_length(chosen, rejected)
        row["prompt"], row["chosen"], row["rejected"] = chosen[:length], chosen[length:], rejected[length:]


def _common_length(left: Any, right: Any) -> int:
    """Returns how much two texts, or two lists of turns, have in common at their start, leaving something of both.

    As `extract_prompt` of TRL (`trl/data_utils.py`): a space before the place where texts part belongs to the answers.
    """
    most = min(len(left), len(right))
    length = next((i for i in range(most) if left[i] != right[i]), most - 1)
    return length - 1 if length and left[length - 1] == " " else length


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and (found := _SPEAKER.match(value)) is not None and found[1] == "Human"


def _read_transcript(text: str) -> list[dict[str, str]]:
    """Returns the turns of a transcript: "\\n\\nHuman: … \\n\\nAssistant: …", which must end with an answer.

    Raises:
        ValueError: it does not.
    """
    _, *parts = _SPEAKER.split(text)
    turns = [{"role": _HH[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1]["role"] != "assistant":
        raise ValueError("a transcript does not end with an answer of the assistant")
    return turns


def _turn(turn: Any) -> Any:
    """Returns a turn with a role and a content, without the nulls that tables write for absent fields."""
    if not isinstance(turn, dict):
        return turn
    if isinstance(turn.get("from"), str) and "value" in turn and "role" not in turn:
        turn = {"role": _SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"]} | {
            name: part for name, part in turn.items() if name not in ("from", "value")
        }
    return {name: part for name, part in turn.items() if part is not None or name == "content"}


def _read_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
