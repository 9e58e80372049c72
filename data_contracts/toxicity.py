"""Toxic rows, as the recipe says how to tell: by a list of phrases, or by any classifier that Python can call.

The shipped list, `toxic_phrases.txt`, holds threats and insults that leave no doubt, and no slurs. It finds what nobody
would want to defend and little else; whoever needs more names a list of their own, or a classifier:

```python
def judge(text: str) -> float:  # in my_filters.py, named as `toxicity: my_filters:judge`
    return classifier(text)[0]["score"]
```
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from data_contracts.words import Words, runs, split_words
from lineage.errors import BadInput

SHIPPED = Path(__file__).with_name("toxic_phrases.txt")
FIELD = "data.toxicity"
Toxicity = Callable[[str], float]  # of a text, from 0 to 1


@cache
def load_toxicity(name: str) -> Toxicity:
    """Returns the function that a recipe names: `phrases`, a `.txt` file or `module:function`.

    Raises:
        BadInput: there is no such file or function, or the file holds no phrase.
    """
    if ":" in name and not name.endswith(".txt"):
        return _load_function(name)
    path = toxicity_file(name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(path, FIELD, f"cannot be read ({error.strerror})", "give a text file of phrases") from None
    except UnicodeDecodeError as error:
        raise BadInput(path, FIELD, f"byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    phrases = frozenset(words for line in lines if not line.startswith("#") and (words := split_words(line)))
    if not phrases:
        raise BadInput(path, FIELD, "holds no phrases", "write one per line")
    sizes = sorted({len(phrase) for phrase in phrases})
    return lambda text: float(_holds_any(split_words(text), phrases, sizes))


def toxicity_file(name: str) -> Path:
    """Returns the file that decides: of phrases, or the module's own (what that imports is not part of a data version).

    Raises:
        BadInput: there is no such module.
    """
    if ":" not in name or name.endswith(".txt"):
        return SHIPPED if name == "phrases" else Path(name)
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        fix = "install it, or put its folder on PYTHONPATH"
        raise BadInput(FIELD, name, f"there is no module {module}", fix)
    return Path(spec.origin)


def _holds_any(words: Words, phrases: frozenset[Words], sizes: Sequence[int]) -> bool:
    return any(not phrases.isdisjoint(runs(words, size)) for size in sizes)


def _load_function(name: str) -> Toxicity:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        fix = "install it, or put its folder on PYTHONPATH"
        raise BadInput(FIELD, name, f"cannot be imported ({error})", fix) from None
    except AttributeError:
        raise BadInput(FIELD, name, f"{module} has no {function}", "name a function of that module") from None

    def judge(text: str) -> float:
        value = found(text)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise BadInput(FIELD, name, f"gave {value!r}, no number from 0 to 1", "return the text's toxicity")
        return float(value)

    return judge
