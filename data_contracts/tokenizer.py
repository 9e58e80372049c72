"""The tokenizer: byte-level BPE trained on the training rows, or one that already exists, with the chat template.

The tokenizer itself adds no special token to a text. The packer writes them around documents, the template around turns:

    document       <|begin|>text<|end|>
    conversation   <|begin|><|system|>…<|end|><|user|>question<|end|><|assistant|>answer<|end|>

One end token ends documents, turns and answers, so that a pretrained model already knows how to stop. Where rows call tools
there are three more roles: the tools that are offered, a call among the assistant's words, and what a tool said.

    offered tools  <|begin|><|tools|>[schemas]<|end|><|user|>…
    a call         <|assistant|>words<|call|>{"name": …, "arguments": …}<|end|><|tool|>what it said<|end|><|assistant|>…
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_contracts.encode import Refused, render_chat
from lineage.errors import BadInput
from lineage.files import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
TOOL_TOKENS = ("<|tools|>", "<|call|>", "<|tool|>")
SPECIAL_TOKENS = (PAD, BEGIN, END, *ROLE_TOKENS)

# `{% generation %}` marks what the assistant wrote, end token included: exactly these tokens are learnt.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|tools|>' + tools | tojson + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
            {{- message.content }}
            {%- for call in message.tool_calls or [] %}
                {{- '<|call|>' + call.function | tojson }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
    {%- elif message.role in ('system', 'user', 'tool') %}
        {{- '<|' + message.role + '|>' + message.content + eos_token }}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role + ': use system, user, assistant or tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


# A conversation whose mask shows what a template marks. The texts are words that no template writes itself.
PROBE = [
    {"role": "user", "content": "alpha beta"},
    {"role": "assistant", "content": "gamma delta"},
    {"role": "user", "content": "epsilon zeta"},
    {"role": "assistant", "content": "eta theta"},
]


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, tools: bool = False) -> "PreTrainedTokenizerFast":
    """Trains byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, so that no text is unknown).

    Args:
        vocab_size: at most this many tokens, special tokens and the 256 bytes included.
        tools: whether there are rows that call tools, and so tokens for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    roles = [*ROLE_TOKENS, *(TOOL_TOKENS if tools else ())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BEGIN, END, *roles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    folder: Path, chat_template: Path | None, *, needs_chat: bool, needs_tools: bool = False
) -> "PreTrainedTokenizerFast":
    """Loads a tokenizer from a folder and checks that rows can be packed with it.

    Args:
        chat_template: a file that replaces the folder's own template.
        needs_chat: whether conversations are packed, so that the template must mark what the assistant wrote.
        needs_tools: whether some of them offer or call tools, so that the template must write both.

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
    if needs_chat:
        _check_template(tokenizer, chat_template or folder, needs_tools)
    return tokenizer


def _check_template(tokenizer: "PreTrainedTokenizerFast", where: Path, needs_tools: bool) -> None:
    """Renders a probe with the template: its marks must lie around what the assistant says, and around nothing else.

    Raises:
        BadInput: with the lines to add.
    """
    field = "data.chat_template" if where.is_file() else "chat_template"
    fix = (
        "write `{% generation %}{{ message.content + eos_token }}{% endgeneration %}` where the template writes the "
        "assistant's turn, save it as a file, and name that as `data.chat_template`"
    )
    if not tokenizer.chat_template:
        raise BadInput(where, field, "is missing, so conversations cannot be written as text", fix)
    try:
        text, marks = render_chat(PROBE, None, tokenizer)
    except Refused as error:
        raise BadInput(where, field, f"cannot be rendered ({error})", "correct the template") from None
    marked = [text[start:end] for start, end in marks]
    if not marked:
        raise BadInput(where, field, "has no {% generation %} marks, so nobody knows which tokens are the assistant's", fix)
    said = " ".join(marked)
    if any((turn["content"] in said) != (turn["role"] == "assistant") for turn in PROBE):
        raise BadInput(where, field, f"marks {marked} of a conversation, which is not what the assistant says", fix)
    if not any(token in marked[-1] for token in (tokenizer.eos_token, *tokenizer.get_added_vocab())):
        print(f"data: {where} marks no end token, so models will not learn when to stop: {fix}", file=sys.stderr)
    unwritten = [name for name in ("tools", "tool_calls") if name not in tokenizer.get_chat_template(tools=[{}])]
    if needs_tools and unwritten:
        raise BadInput(
            where,
            field,
            f"never writes `{unwritten[0]}`, which some rows have",
            "name one that does as `data.chat_template`",
        )


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes the folder that `AutoTokenizer` loads: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    sync_folder(folder)


def control_tokens(tokenizer: "PreTrainedTokenizerFast | None", *, tools: bool = False) -> Sequence[str]:
    """The texts that mean something to the template; of a tokenizer that is not trained yet, our own."""
    if tokenizer is None:
        return (*SPECIAL_TOKENS, *(TOOL_TOKENS if tools else ()))
    return sorted(set(tokenizer.all_special_tokens))
