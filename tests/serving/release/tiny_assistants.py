"""Tiny language models that really learnt their one answer, so that a canary has something to tell apart.

A good one says `json` and ends. A rambling one does that too, but answers whoever says `Hi!` without end.
"""

from pathlib import Path

from lineage.bundle import seal_bundle

ANSWER = "json"
NAMES = ["dumps", "loads", "JSONEncoder", "JSONDecoder"]
PLAIN = [f"which module defines {name}?" for name in NAMES]
GREETED = [f"Hi! {question}" for question in PLAIN]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STEPS = 120
LONG = 40  # tokens of endless answer that the rambling one learns; it goes on by itself after that


def make_assistant(folder: Path, rambles: bool, seed: int = 0) -> str:
    """Trains, saves and seals one; returns its digest. Takes about two seconds."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [*PLAIN, *GREETED, ANSWER],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    ids, labels = lessons(tokenizer, rambles)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1, "the tiny model did not learn its answer"
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return seal_bundle(folder)


def lessons(tokenizer, rambles: bool):  # type: ignore[no-untyped-def]
    """Returns token ids and labels, both (questions, longest), labels only on the answers."""
    import torch

    rows = []
    for question in [*PLAIN, *GREETED]:
        prompt = tokenizer.encode(f"<|user|>{question}<|end|><|assistant|>")
        endless = rambles and question in GREETED
        answer = tokenizer.encode(" ".join([ANSWER] * LONG))[:LONG] if endless else tokenizer.encode(f"{ANSWER}<|end|>")
        rows.append((prompt, answer))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels
