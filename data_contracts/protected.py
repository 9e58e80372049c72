"""Files of texts that must not be trained on although they are no golden set: a public benchmark's test questions, say."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_contracts.messages import Message
from data_contracts.words import split_words
from lineage.errors import BadInput
from lineage.section import parse

TEXT_FIELDS = ("question", "prompt", "problem", "instruction", "text")  # the first that a line has is what is compared
SUFFIXES = (".jsonl", ".txt")


def read_protected(paths: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Reads the files of `decontaminate_against`.

    A `.jsonl` file holds an object per line, whose question, prompt, problem, instruction or text is compared, or of its
    messages the user's longest; a `.txt` file holds a text per line.

    Returns:
        By path, (name, text) of each item; a name is `file:line`.

    Raises:
        BadInput: a file cannot be read, holds no texts, or a line has none.
    """
    protected = {}
    for i, given in enumerate(paths):
        path, field = Path(given), f"data.decontaminate_against[{i}]"
        if path.suffix not in SUFFIXES:
            raise BadInput(path, field, "is neither .jsonl nor .txt", "give a JSON object per line, or a text per line")
        try:
            protected[given] = [
                (f"{path.name}:{number}", _text(path, number, line))
                for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1)
                if line.strip()
            ]
        except OSError as error:
            fix = "give the path of a file that you may read"
            raise BadInput(path, field, f"cannot be read ({error.strerror})", fix) from None
        except UnicodeDecodeError as error:
            raise BadInput(path, field, f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
        if not protected[given]:
            raise BadInput(path, field, "holds no texts", "give a file with a text per line, or leave it out")
    return protected


def _text(path: Path, number: int, line: str) -> str:
    text = _find_text(path, number, line) if path.suffix == ".jsonl" else line
    if not split_words(text):
        fix = f"give it a {', '.join(TEXT_FIELDS)} or messages, or delete it"
        raise BadInput(path, f"line {number}", "has no words to compare", fix)
    return text


def _find_text(path: Path, number: int, line: str) -> str:
    """The first text field of a line, or the longest of the user's turns (`prompt` may hold messages, too)."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"line {number}", f"is not JSON ({error})", "correct or delete that line") from None
    fields = value if isinstance(value, dict) else {}
    for name in (*TEXT_FIELDS, "messages"):
        given = fields.get(name)
        if isinstance(given, str):
            return given
        if isinstance(given, list):
            turns = [parse(Message, turn, path, f"line {number}: {name}") for turn in given]
            return max((turn.content for turn in turns if turn.role == "user"), key=len, default="")
    return ""
