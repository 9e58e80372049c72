"""The same rows, weights and settings give the same loss at every step as TRL: an independent implementation as oracle."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PAD, SEQ_LEN, VOCABULARY, Command, pack_row, write_packed, write_tokenizer

from training.batches import NO_TARGET, rows_of_step

STEPS, ROWS_PER_STEP, RATE = 20, 4, 5e-3
NUM_ROWS = STEPS * ROWS_PER_STEP
TOLERANCE = 1e-4
BOS, EOS = 1, 2
SETTINGS = {
    "steps": STEPS,
    "rows_per_step": ROWS_PER_STEP,
    "learning_rate": RATE,
    "schedule": "constant",
    "warmup_steps": 0,
}

Document = tuple[list[int], list[int]]  # prompt and answer, token ids
Losses = Callable[..., list[float]]


def documents(kind: str) -> Iterator[list[Document]]:
    """Yields the documents of each row: one question and its answer, or two answers of which the first is chosen."""
    generator = torch.Generator().manual_seed(7)

    def answer() -> list[int]:
        length = int(torch.randint(2, 9, (), generator=generator))
        return [*torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), EOS]

    for _ in range(NUM_ROWS):
        prompt = [BOS, *torch.randint(3, VOCABULARY, (3,), generator=generator).tolist()]
        yield [(prompt, answer()) for _ in range(2 if kind == "preference" else 1)]


def pack(row: list[Document]) -> dict[str, list[int]]:
    """Packs documents into a row, as the data stage does."""
    packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "segment_ids": []}
    for segment, (prompt, answer) in enumerate(row):
        packed["input_ids"] += prompt + answer
        packed["labels"] += [NO_TARGET] * len(prompt) + answer
        packed["position_ids"] += range(len(prompt) + len(answer))
        packed["segment_ids"] += [segment] * (len(prompt) + len(answer))
    padding = SEQ_LEN - len(packed["input_ids"])
    for name, filler in (("input_ids", PAD), ("labels", NO_TARGET), ("position_ids", 0), ("segment_ids", -1)):
        packed[name] += [filler] * padding
    return packed


def is_good(number: int) -> bool:
    """Whether the answer of a row is a good one: two of three are."""
    return number % 3 != 0


def write_judged(folder: Path) -> None:
    """Writes judged answers; as TRL does, each prompt's mismatched answer is that of the row before it in its step."""
    rows = [pack(row) for row in documents("unpaired")]
    mismatched: list[dict[str, list[int]]] = [{} for _ in rows]
    pairs = [row[0] for row in documents("unpaired")]
    for step in range(STEPS):
        numbers = rows_of_step(NUM_ROWS, ROWS_PER_STEP, 0, step)
        for number, before in zip(numbers, [numbers[-1], *numbers[:-1]], strict=True):
            mismatched[number] = pack([(pairs[number][0], pairs[before][1])])
    judged = [[int(is_good(number))] for number in range(NUM_ROWS)]
    for split in ("train", "validation"):
        for name, packed in ((split, rows), (f"{split}-mismatched", mismatched)):
            write_packed(folder, "unpaired", name, [
                {**row, "desirable": good} for row, good in zip(packed, judged, strict=True)
            ])  # fmt: skip


def in_words(tokens: list[int]) -> str:
    """Returns the text that the tokenizer of these tests turns into these tokens."""
    return " ".join({BOS: "<s>", EOS: "</s>"}.get(token, f"w{token}") for token in tokens)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, and a model that both sides start from."""
    folder = tmp_path_factory.mktemp("parity")
    write_tokenizer(folder / "data/tokenizer", VOCABULARY)
    write_judged(folder / "data")
    for split in ("train", "validation"):
        write_packed(folder / "data", "pretrain", split, [pack_row("pretrain", torch.Generator().manual_seed(1))] * 4)
        for kind in ("sft", "preference"):
            write_packed(folder / "data", kind, split, [pack(row) for row in documents(kind)])
    command = Command(folder / "data", folder)
    code, _, errors = command.run(command.job("pretrain", steps=2), folder / "base")
    assert code == 0, errors
    return folder


@pytest.fixture
def ours(place: Path, tmp_path: Path) -> Losses:
    """Trains with the stage command and returns the loss of every step."""

    def train(objective: str, **options: Any) -> list[float]:
        command = Command(place / "data", tmp_path)
        job = command.job(objective, base=place / "base", **{**SETTINGS, **options})
        code, _, errors = command.run(job, tmp_path / "out")
        assert code == 0, errors
        rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    return train


@pytest.fixture
def theirs(place: Path, tmp_path: Path) -> Losses:
    """Trains with TRL on the same rows in the same order and returns the loss of every step."""

    def train(objective: str, **options: Any) -> list[float]:
        import trl
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer

        configuration, trainer = {
            "sft": (trl.SFTConfig, trl.SFTTrainer),
            "dpo": (trl.DPOConfig, trl.DPOTrainer),
            "kto": (trl.KTOConfig, trl.KTOTrainer),
        }[objective]
        rows = list(documents("preference" if objective == "dpo" else "sft"))
        order = [row for step in range(STEPS) for row in rows_of_step(NUM_ROWS, ROWS_PER_STEP, 0, step)]
        columns = ("chosen", "rejected") if objective == "dpo" else ("completion",)
        texts = [
            {"prompt": in_words(row[0][0])}
            | {column: " " + in_words(answer) for column, (_, answer) in zip(columns, row, strict=True)}
            | ({"label": is_good(number)} if objective == "kto" else {})
            for number, row in ((number, rows[number]) for number in order)
        ]
        losses: list[float] = []

        class Listening(trainer):  # type: ignore[valid-type, misc]
            def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                loss: torch.Tensor = super().training_step(*args, **kwargs)
                losses.append(float(loss))
                return loss

        Listening(
            model=AutoModelForCausalLM.from_pretrained(place / "base/bundle", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(place / "base/bundle"),
            train_dataset=Dataset.from_list(texts),
            args=configuration(
                output_dir=str(tmp_path / "trl"),
                max_steps=STEPS,
                per_device_train_batch_size=ROWS_PER_STEP,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                weight_decay=0.1,
                adam_beta1=0.9,
                adam_beta2=0.95,
                max_grad_norm=1.0,
                train_sampling_strategy="sequential",
                bf16=False,
                use_cpu=True,
                activation_checkpointing=False,
                save_strategy="no",
                report_to="none",
                **options,
            ),
        ).train()
        return losses

    return train


def test_sft(ours: Losses, theirs: Losses) -> None:
    assert ours("sft") == pytest.approx(theirs("sft"), abs=TOLERANCE)


@pytest.mark.parametrize(
    "loss",
    [
        "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "discopop", "apo_zero",
        "apo_down",
    ],
)  # fmt: skip
def test_dpo(ours: Losses, theirs: Losses, loss: str) -> None:
    smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
    mine = ours("dpo", dpo_loss=loss, dpo_beta=0.3, dpo_label_smoothing=smoothing)
    assert len(mine) == STEPS
    assert mine == pytest.approx(theirs("dpo", loss_type=[loss], beta=0.3, label_smoothing=smoothing), abs=TOLERANCE)


def test_wpo(ours: Losses, theirs: Losses) -> None:
    theirs_weighted = theirs("dpo", loss_type=["sigmoid"], beta=0.3, use_weighting=True)
    assert ours("dpo", dpo_beta=0.3, dpo_wpo=True) == pytest.approx(theirs_weighted, abs=TOLERANCE)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_kto(ours: Losses, theirs: Losses, loss: str) -> None:
    mine = ours("kto", kto_loss=loss, kto_beta=0.3, kto_desirable_weight=1.2, kto_undesirable_weight=0.7)
    assert len(mine) == STEPS
    options = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    assert mine == pytest.approx(theirs("kto", loss_type=loss, beta=0.3, **options), abs=TOLERANCE)
