"""A release bundle as lm-eval's language model: the prompts and the end of a turn are those of serving.

Imports torch, transformers and lm-eval; import it inside the work of a stage only.
"""

from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lineage.errors import BadInput

SHORTEN = "shorten the item, or evaluate a model with a longer window"


class BundleLM(HFLM):  # type: ignore[misc]  # lm-eval has no type information
    """lm-eval's `HFLM` with three differences.

    Serving encodes the rendered prompt alone, so a prompt is encoded alone here too, without special tokens: `HFLM` moves
    white space from the prompt's end to the answer. A choice is scored as a complete answer, with the end of its turn:
    else a choice that begins another one could never be the less likely. A prompt that does not fit the model's window
    is an error: `HFLM` would cut its beginning off.

    Args:
        folder: a release bundle.
        dtype: `float32` or `bfloat16`.
        device: a torch device.

    Raises:
        BadInput: the bundle has no chat template, or no token that ends a turn.
    """

    def __init__(self, folder: Path, dtype: str, batch_size: int, device: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise BadInput(folder, "chat_template.jinja", "is missing", "save the tokenizer with its chat template")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        model.generation_config.max_length = model.generation_config.max_new_tokens = None  # the task decides
        ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
        if ends is None:
            raise BadInput(folder, "generation_config.json: eos_token_id", "is missing", "name the token that ends a turn")
        self.folder = folder
        self.end_of_turn: int = ends[0] if isinstance(ends, list) else ends
        # Log probabilities are sums of small differences: they are taken in fp32 whatever the weights are.
        rounding = {"softmax_dtype": "float32", "add_bos_token": False}
        super().__init__(model.to(device), tokenizer=tokenizer, batch_size=batch_size, **rounding)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a turn."""
        return self.end_of_turn

    @property
    def prefix_token_id(self) -> int:
        """The token before a document: the one that begins a text, or else the one that ended the text before it."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.end_of_turn if begin is None else begin

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes prompts, padded on the left: ids and attention mask, both (batch, longest)."""
        ids, mask = super().tok_batch_encode(strings, padding_side)
        if left_truncate_len is not None and ids.shape[1] > left_truncate_len:
            self._refuse(strings[int(mask.sum(dim=1).argmax())], ids.shape[1], left_truncate_len)
        return ids, mask

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        prompt, answer = self.tok_encode(context), [*self.tok_encode(continuation), self.end_of_turn]
        if len(prompt) + len(answer) > self.max_length:
            self._refuse(context, len(prompt) + len(answer), self.max_length)
        return prompt, answer

    def _refuse(self, prompt: str, length: int, room: int) -> None:
        raise BadInput(self.folder, f"prompt {prompt[:80]!r}", f"takes {length} tokens, there is room for {room}", SHORTEN)
