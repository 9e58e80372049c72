"""Rows that are not worth learning from, or not to be learnt: quality of documents, languages, toxicity."""

from collections.abc import Iterable

from data_contracts.config import DataConfig
from data_contracts.language import check_languages, find_language
from data_contracts.quality import check_quality
from data_contracts.quarantine import Reason
from data_contracts.rows import Document, Row
from data_contracts.toxicity import load_toxicity


def screen_quality(rows: Iterable[Row], config: DataConfig) -> dict[int, Reason]:
    """Returns the position of every row that the recipe's `quality`, `languages` or `toxicity` does not let pass.

    Raises:
        BadInput: the recipe names a language or a classifier that there is not.
    """
    if not (config.quality or config.languages or config.toxicity):
        return {}
    check_languages(config.languages)
    found = {}
    for position, row in enumerate(rows):
        if reason := check_row(row, config):
            found[position] = reason
    return found


def check_row(row: Row, config: DataConfig) -> Reason | None:
    """Says why a row does not pass; None where it does."""
    if config.quality and isinstance(row, Document) and (broken := check_quality(row.text, config.quality)):
        return Reason(*broken)
    texts = row.texts()
    if config.languages and (language := find_language("\n".join(texts))) and language not in config.languages:
        return Reason("language", f"is in the language `{language}`")
    if config.toxicity:
        judge = load_toxicity(config.toxicity)
        if (toxicity := max(map(judge, texts), default=0.0)) >= config.toxicity_threshold:
            return Reason("toxicity", f"has a toxicity of {toxicity:.2f} by `{config.toxicity}`")
    return None
