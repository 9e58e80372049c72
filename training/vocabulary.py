"""The tokenizer as the model sees it: its tokens and special ids, and rows for tokens that a base does not know yet."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lineage.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "tokenizer.json"


class Vocabulary:
    """What the model must know of the tokenizer: its tokens, and the ids of the special ones.

    Attributes:
        folder: the Hugging Face tokenizer folder that will ship in the bundle.
        ids: token → id.
        size: one more than the highest id: the rows of the embedding.
        special: `bos_token_id`, `eos_token_id`, `pad_token_id`, each where the tokenizer has it.

    Raises:
        BadInput: the folder holds no `tokenizer.json`, or an unreadable one.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / FILE
        if not path.is_file():
            fix = "save a fast tokenizer there: `AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
            raise BadInput(folder, FILE, "is missing, so nobody knows what the token ids mean", fix)
        try:
            self.ids: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception as error:  # the Rust library raises bare Exception
            raise BadInput(path, "", f"is not a tokenizer ({error})", "save the tokenizer again") from None
        self.folder = folder
        self.size = max(self.ids.values()) + 1
        self.special = self._special_ids(folder / "tokenizer_config.json")

    def _special_ids(self, path: Path) -> dict[str, int]:
        try:
            names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if not isinstance(names, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise BadInput(path, "", f"is not JSON as tokenizers write it ({error})", "run the data stage again") from None
        found = {}
        for role in ("bos_token", "eos_token", "pad_token"):
            token = names.get(role)
            text = token.get("content") if isinstance(token, dict) else token
            if text in self.ids:
                found[f"{role}_id"] = self.ids[text]
        return found


def fit_vocabulary(model: "PreTrainedModel", base: Path, vocabulary: Vocabulary, grow: bool) -> bool:
    """Makes sure that a base means by every token id what the data means by it, and gives new tokens rows where it may.

    Args:
        base: the base's folder, with the tokenizer that it was trained with.
        grow: whether the data's tokenizer may hold further tokens.

    Returns:
        Whether there were new tokens.

    Raises:
        BadInput: the base has no tokenizer, or the data another one.
    """
    known, rows = Vocabulary(base).ids, model.get_input_embeddings().num_embeddings
    if known == vocabulary.ids and vocabulary.size <= rows:
        return False
    kept = all(vocabulary.ids.get(token) == number for token, number in known.items())
    if not kept or not grow or max(known.values()) >= rows:
        more = f"{len(vocabulary.ids) - len(known)} more tokens than" if kept else "other tokens than"
        allow = ", or allow new tokens with `model: grow_vocabulary: true`" if kept else ""
        raise BadInput(
            vocabulary.folder,
            FILE,
            f"has another vocabulary: {more} the base model in {base} ({len(known)} tokens, {rows} rows)",
            f"prepare the data with the base's tokenizer (`data: tokenizer: {base}`){allow}",
        )
    new = sorted(set(vocabulary.ids.values()) - set(known.values()))
    _add_rows(model, sorted(set(known.values())), new, vocabulary.size)
    return True


@torch.no_grad()
def _add_rows(model: "PreTrainedModel", known: list[int], new: list[int], size: int) -> None:
    """Starts the rows of new tokens at the mean of the known ones, in the embedding and in the output layer.

    A new token then has at most the mean probability of the old ones, so that the distribution over these hardly moves
    (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models). Nothing is random.
    """
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight, *(table for table in _tables(head) if table is not embedding.weight)]
    for table in tables:
        table[new] = table[known].mean(0)


def _tables(head: nn.Module | None) -> list[torch.Tensor]:
    """The output layer's weight and bias: both have a row for each token."""
    return [table for table in (getattr(head, "weight", None), getattr(head, "bias", None)) if table is not None]
