"""The loss of packed rows is that of their documents alone, for every objective and attention; and weights weigh."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_training import PAD, TINY_MODEL

from data_contracts.config import RowKind
from data_contracts.encode import Piece, Segment
from data_contracts.pack import arrange, fill_rows, mismatch, write_packed
from training.attention import set_attention
from training.batches import PackedRows
from training.choices import ROW_KINDS, ObjectiveName
from training.config import ModelConfig, TrainingConfig
from training.document_attention import NAME
from training.engine import SingleEngine
from training.model import build_model
from training.processes import Processes
from training.scoring import Scorer
from training.stage import make_objective
from training.validate import with_zero_point
from training.vocabulary import Vocabulary

CAPACITY = 40
OBJECTIVES: tuple[ObjectiveName, ...] = ("pretrain", "sft", "dpo", "kto")
Lengths = list[tuple[int, int, float]]  # of each piece: tokens of its prompt and of its answer, and its weight
LENGTHS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.sampled_from([1.0, 0.25, 3.0])), min_size=2, max_size=9
)


def make_pieces(kind: RowKind, lengths: Lengths) -> list[Piece]:
    """Pieces of these lengths, with tokens that follow from them."""
    generator = torch.Generator().manual_seed(sum(prompt + 10 * answer for prompt, answer, _ in lengths))
    pieces = []
    for number, (prompt, answer, weight) in enumerate(lengths):
        segments = []
        for _ in range(2 if kind == "preference" else 1):
            tokens = torch.randint(3, 90, (prompt + answer,), generator=generator).tolist()
            segments.append(Segment(tokens, [kind == "pretrain"] * prompt + [True] * answer))
        pieces.append(Piece(tuple(segments), weight, number % 2 == 0 if kind == "unpaired" else None))
    return pieces


def write(folder: Path, kind: RowKind, rows: list[list[Piece]], other: list[list[Piece]]) -> None:
    for name, packed in (("train", rows), *([("train-mismatched", other)] if kind == "unpaired" else [])):
        write_packed(folder / "packed" / kind / f"{name}.safetensors", kind, fill_rows(packed, CAPACITY, PAD), len(rows))


def mean_loss(objective: ObjectiveName, folder: Path, tokenizer: Path, attention: str) -> float:
    """The loss over all rows of a folder, by a model that has moved away from its reference."""
    config = TrainingConfig.model_validate(
        {"objective": objective, "steps": 1, "precision": "fp32", "dpo_beta": 0.3, "kto_beta": 0.3, "rows_per_step": 32}
    )
    model = build_model(ModelConfig(**TINY_MODEL), None, Vocabulary(tokenizer), config, CAPACITY)
    set_attention(model, attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # attention matters: its weights are far larger than the initial ones
    engine = SingleEngine(Scorer(model), config, Processes(0, 1, torch.device("cpu")))
    data = PackedRows(folder, objective, "train")
    loss = make_objective(engine, data, "train")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.3)
    everything = data.batch(range(data.num_rows))
    loss = with_zero_point(engine, loss, range(data.num_rows))
    return float(loss.loss(everything, engine.score(everything))) / data.terms(everything)


@pytest.mark.parametrize("attention", ["eager", "sdpa", NAME])
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=LENGTHS)
def test_packed_rows_lose_what_their_documents_lose_alone(
    objective: ObjectiveName, attention: str, lengths: Lengths, packed_data: Path, tmp_path: Path
) -> None:
    kind: RowKind = ROW_KINDS[objective]  # type: ignore[assignment]
    pieces = make_pieces(kind, lengths)
    together = arrange(pieces, CAPACITY)
    mismatched = mismatch(together, CAPACITY) if kind == "unpaired" else []
    write(tmp_path / "together", kind, together, mismatched)
    write(tmp_path / "alone", kind, [[p] for row in together for p in row], [[p] for row in mismatched for p in row])
    tokenizer = packed_data / "tokenizer"
    packed, alone = (mean_loss(objective, tmp_path / name, tokenizer, attention) for name in ("together", "alone"))
    assert packed == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_a_weight_counts_as_so_many_copies(objective: ObjectiveName, packed_data: Path, tmp_path: Path) -> None:
    kind: RowKind = ROW_KINDS[objective]  # type: ignore[assignment]
    lengths: Lengths = [(3, 4, 1.0), (2, 5, 1.0), (4, 3, 1.0), (1, 6, 1.0)]
    once = make_pieces(kind, lengths)
    copied = [*once, once[1], once[1]]
    weighed = [Piece(p.segments, 3.0 if number == 1 else 1.0, p.desirable) for number, p in enumerate(once)]
    others = {"copied": [[p] for p in once], "weighed": [[p] for p in once]}  # the same zero point for both
    for name, pieces in (("copied", copied), ("weighed", weighed)):
        extra = [[] for _ in range(len(pieces) - len(once))]
        write(tmp_path / name, kind, [[p] for p in pieces], [*others[name], *extra])
    losses = [mean_loss(objective, tmp_path / name, packed_data / "tokenizer", "sdpa") for name in ("copied", "weighed")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    write(tmp_path / "once", kind, [[p] for p in once], others["copied"])
    assert mean_loss(objective, tmp_path / "once", packed_data / "tokenizer", "sdpa") != pytest.approx(losses[0], abs=1e-5)
