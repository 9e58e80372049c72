"""The tokenizer: byte-level BPE trained on the training rows, or one that already exists, with the chat template.

The tokenizer itself adds no special token to a text. The packer writes them around documents, the template around turns:

    document       <|begin|>text<|end|>
    conversation   <|begin|><|system|>…<|end|><|user|>question<|end|><|assistant|>answer<|end|>

One end token ends documents, turns and answers, so that a pretrained model already knows how to stop.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lineage.errors import BadInput
from lineage.files import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, BEGIN, END, *ROLE_TOKENS)

# `{% generation %}` marks what the assistant wrote, end token included: exactly these tokens are learnt.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
            {{- message.content + eos_token }}
        {%- endgeneration %}
    {%- elif message.role in ('system', 'user') %}
        {{- '<|' + message.role + '|>' + message.content + eos_token }}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role + ': use system, user or assistant') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Trains byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, so that no text is unknown).

    Args:
        vocab_size: at most this many tokens, special tokens and the 256 bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLE_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path, chat_template: Path | None, needs_chat: bool) -> "PreTrainedTokenizerFast":
    """Loads a tokenizer from a folder and checks that rows can be packed with it.

    Args:
        chat_template: a file that replaces the folder's own template.
        needs_chat: whether conversations are packed, so that the template must mark what the assistant wrote.

    Raises:
        BadInput: naming what the tokenizer lacks.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise BadInput(folder, "tokenizer.json", "is missing", "give the folder of a tokenizer that transformers saved")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises anything here, from KeyError to bare Exception
        raise BadInput(folder, "tokenizer.json", f"cannot be loaded ({error})", "save the tokenizer again") from None
    if tokenizer.eos_token is None:
        raise BadInput(folder, "eos_token", "is not set", "set `eos_token` in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by segment_ids, so any token will do
    if chat_template:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if needs_chat and "generation" not in (tokenizer.chat_template or ""):
        raise BadInput(
            folder,
            "chat_template",
            "has no {% generation %} marks, so nobody knows which tokens are the assistant's",
            "mark them, and give the file as `data.chat_template`",
        )
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the folder that `AutoTokenizer` loads: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    sync_folder(folder)


def control_tokens(tokenizer: "PreTrainedTokenizerFast | None") -> Sequence[str]:
    """The texts that mean something to the template; of a tokenizer that is not trained yet, our own."""
    return SPECIAL_TOKENS if tokenizer is None else sorted(set(tokenizer.all_special_tokens))
