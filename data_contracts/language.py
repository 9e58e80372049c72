"""Which language a text is in, by py3langid, whose model is inside its package (97 languages; Lui and Baldwin 2012)."""

from functools import cache
from typing import TYPE_CHECKING

from lineage.errors import BadInput

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

FEWEST_LETTERS = 50  # a shorter text is in no language: `OK` is in all of them
ENOUGH = 4000  # characters that are looked at; more change nothing


def find_language(text: str) -> str:
    """Returns the language's code (ISO 639-1), "" where the text is too short to tell.

    >>> find_language("The harvest was poor this year, because it rained all through the summer.")
    'en'
    """
    if sum(map(str.isalpha, text[:ENOUGH])) < FEWEST_LETTERS:
        return ""
    return str(_identifier().classify(text[:ENOUGH])[0])


def check_languages(languages: tuple[str, ...]) -> None:
    """Refuses a language that no text could ever be found to be in.

    Raises:
        BadInput: naming it.
    """
    for i, language in enumerate(languages):
        if language not in _identifier().labels:
            known = ", ".join(sorted(map(str, _identifier().labels)))
            raise BadInput("data", f"languages[{i}]", f"`{language}` cannot be told", f"name one of {known}")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
