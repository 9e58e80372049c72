"""What can be chosen in the sections, as plain names: modules that compute read them where pydantic is not installed."""

from typing import Literal

ObjectiveName = Literal["pretrain", "sft", "dpo", "kto"]
PairLoss = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "discopop",
    "apo_zero",
    "apo_down",
    "simpo",
    "orpo",
]
SMOOTHED: frozenset[PairLoss] = frozenset({"sigmoid", "robust", "exo_pair", "simpo"})
WITHOUT_REFERENCE: frozenset[PairLoss] = frozenset({"simpo", "orpo"})

# Which kind of packed rows each objective learns from (`packed/<kind>/{train,validation}.safetensors`).
ROW_KINDS: dict[ObjectiveName, str] = {"pretrain": "pretrain", "sft": "sft", "dpo": "preference", "kto": "unpaired"}
# Adapting every linear layer of the blocks is what works best (Dettmers et al. 2023, QLoRA, section 4).
ALL_LINEAR = "all-linear"

EngineName = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Offload = Literal["none", "optimizer", "all"]
Checkpointing = Literal["none", "full", "selective"]
Attention = Literal["auto", "eager", "sdpa", "documents", "varlen", "flash", "flex"]
Kernels = Literal["torch", "liger"]
ZERO_ENGINES: frozenset[EngineName] = frozenset({"zero1", "zero2", "zero3"})
OFFLOADING: dict[Offload, tuple[EngineName, ...]] = {
    "optimizer": ("zero1", "zero2", "zero3"),
    "all": ("fsdp2", "zero3"),
}
