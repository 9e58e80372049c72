"""The model card: what a bundle is, in words. It holds no times, so the same run gives the same bytes."""

from collections.abc import Mapping

from lineage.job import Job
from lineage.record import Metric
from training.config import TrainingConfig

METHODS = {
    "pretrain": "pretraining: next-token prediction on documents",
    "sft": "supervised fine-tuning: next-token prediction on the assistant's turns",
    "dpo": "direct preference optimisation on pairs of answers",
    "kto": "Kahneman-Tversky optimisation on answers that were judged good or bad",
}
# Figures that follow from the weights; speeds would make two equal runs two different bundles.
FIGURES = ("steps", "tokens", "loss", "validation_loss_before", "validation_loss", "preference_accuracy_before",
           "preference_accuracy", "reward_margin")  # fmt: skip


def model_card(job: Job, config: TrainingConfig, parameters: int, data_version: str, figures: Mapping[str, Metric]) -> str:
    """Returns the card in Markdown.

    Args:
        figures: the stage's metrics; empty for an untrained model.
    """
    method = METHODS[config.objective] if figures else "none: the random weights that training starts from"
    adapters = f", {_adapters(config)}" if config.lora_rank and figures else ""
    rows = [f"| {name.replace('_', ' ')} | {_format(figures[name])} |" for name in FIGURES if name in figures]
    table = ["", "| figure | value |", "|---|---|", *rows] if rows else []
    lines = [
        f"# {job.name} {job.version}: {job.stage}",
        "",
        f"A causal language model with {parameters:,} parameters.",
        "",
        f"- Training: {method}{adapters}",
        f"- Data version: {data_version or 'not versioned'}",
        "- Weights: safetensors, fp32",
        *table,
        "",
        "## Limits",
        "",
        "It says what its training data makes likely, which may be wrong. The release report holds its evaluation.",
        "",
    ]
    return "\n".join(lines)


def _adapters(config: TrainingConfig) -> str:
    kind = "DoRA" if config.lora_dora else "LoRA"
    scale = ", rank-stabilised" if config.lora_rslora else ""
    return f"{kind} of rank {config.lora_rank}{scale}" + (" on a base of 4 bits" if config.lora_quantize != "none" else "")


def _format(value: Metric) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
