"""What a training stage is told: the model and the recipe of the run, which together are what it is."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from lineage.section import Section
from training.choices import ALL_LINEAR, SMOOTHED, ObjectiveName, PairLoss

# What a new Llama is described by.
DIMENSIONS = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "max_positions", "rope_theta",
              "tie_embeddings")  # fmt: skip

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class ModelConfig(Section):
    """Which model is trained: an existing one, a new one of any architecture, or a new Llama of these dimensions.

    The tokenizer decides a new model's vocabulary. Dropout and other noise that an architecture brings is switched off: one
    pass over packed rows hardly overfits, and an update is then the same however it is divided.

    Attributes:
        base: "" for a new model; else a folder, NAME@VERSION or the name of a model on the Hugging Face hub, which reaches
            the stage as its parent `base`. The dimensions below are then those of the base, and what is written here is
            ignored.
        revision: the hub's branch, tag or commit; "" is `main`. What counts for the identity is the bytes, so name a commit
            where `main` may move.
        grow_vocabulary: the tokenizer may hold more tokens than the base's; the new ones get rows of their own.
        config: a Hugging Face `config.json` of any causal language model, for a new model of that architecture. A path is
            read at once: its content is what counts.
        hidden_size: the width of the residual stream; a multiple of `num_heads`.
        intermediate_size: the width inside the feed-forward layers.
        num_layers, num_heads: blocks, and attention heads per block.
        num_kv_heads: key/value heads per block; fewer than `num_heads` is grouped-query attention.
        max_positions: the longest sequence that the model will serve; at least the packed rows' `seq_len`.
        rope_theta: the base wavelength of the rotary position embedding.
        tie_embeddings: whether the output layer is the transposed input embedding.
    """

    base: str = ""
    revision: str = ""
    grow_vocabulary: bool = False
    config: dict[str, JsonValue] | None = None
    hidden_size: Positive = 256
    intermediate_size: Positive = 704
    num_layers: Positive = 6
    num_heads: Positive = 4
    num_kv_heads: Positive = 4
    max_positions: Positive = 1024
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    tie_embeddings: bool = True

    @field_validator("config", mode="before")
    @classmethod
    def _read_config(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "is not JSON"
            raise ValueError(f"cannot be read as a model's config.json ({reason})") from None

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config names no `model_type`: give a config.json as transformers writes it")
        if self.base and self.config is not None:
            raise ValueError("base and config are two models: leave one out")
        if self.revision and (not self.base or "@" in self.base):
            raise ValueError("revision is of a `base` on the hub, and there is none")
        fields = type(self).model_fields
        written = [name for name in DIMENSIONS if getattr(self, name) != fields[name].default]
        if written and self.config is not None:
            raise ValueError(f"{written[0]} is what config says: leave it out here")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.hidden_size // self.num_heads % 2:
            raise ValueError("hidden_size / num_heads must be even: rotary embeddings turn pairs of numbers")
        return self


class TrainingConfig(Section):
    """One training stage. Every field shapes the weights or the record, so every field is part of the identity.

    Attributes:
        objective: `pretrain` and `sft` minimise the cross entropy of target tokens, `dpo` the preference loss of pairs,
            `kto` that of single answers that were judged good or bad.
        steps: optimizer updates.
        rows_per_step: packed rows per update, over all processes.
        accumulation: forward/backward passes that one update is split into; lowers memory, leaves the update the same.
        learning_rate: the peak, reached after `warmup_steps` of linear warm-up.
        schedule: `cosine` (Loshchilov & Hutter 2017), `wsd` (warm-up, stable, linear decay over the last `decay_steps`;
            Hu et al. 2024, MiniCPM) or `constant`.
        final_fraction: the learning rate at the end as a fraction of the peak; ignored by `constant`.
        optimizer: `adamw`; `adamw_8bit` keeps AdamW's state in 8 bits (Dettmers et al. 2022), engines `single` and `ddp`;
            `muon` makes the updates of the blocks' matrices orthogonal and leaves the rest to AdamW (Jordan et al. 2024),
            engines `single`, `ddp` and `fsdp2`, for training all weights.
        weight_decay: the decoupled decay of matrices; norms and biases never decay.
        betas: AdamW's moment decays.
        max_grad_norm: the global gradient norm is clipped to this; 0 leaves it.
        precision: `bf16` computes matrix products in bfloat16 over fp32 master weights; `fp16` in half precision, with
            dynamic loss scaling (Micikevicius et al. 2018); `fp8` those of the blocks in 8-bit floats and the rest as
            `bf16`, on GPUs that can, engines `single`, `ddp` and `fsdp2`; `fp32` computes all in fp32; `auto` takes bf16
            where the device has instructions for it, else fp32. The record says which it was, and a run that continues
            elsewhere keeps it.
        on_bad_step: what happens at a step whose loss or gradient is no finite number, or whose loss is a spike. `halt`
            ends the run and names the rows; `skip` leaves the weights as they are and goes on with the next rows; `rewind`
            also goes back to the weights of the newest checkpoint.
        spike_deviations: a loss so many robust standard deviations above the recent ones is a spike (`training.guard`); 0
            looks for none. 8 is a fair value.
        seed: initial weights, adapters and row order.
        log_every, validate_every, checkpoint_every: in steps; 0 for `validate_every` validates before and after only,
            0 for `checkpoint_every` writes none but the last.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        validation_rows: how many validation rows are scored each time; 0 takes all.
        lora_rank: the rank of LoRA adapters (Hu et al. 2021); 0 trains all weights.
        lora_alpha: adapters are scaled by `lora_alpha / lora_rank`.
        lora_rslora: scale them by `lora_alpha / sqrt(lora_rank)`, which lets high ranks learn (Kalajdzievski 2023).
        lora_dora: adapters for the direction of each weight, and a trained magnitude (Liu et al. 2024, DoRA).
        lora_targets: which linear layers get an adapter: `all-linear` (all but the output layer), a list of names, or a
            regular expression that matches whole module names. Experts that are one fused tensor have none.
        lora_full_modules: names of modules that are trained in full beside the adapters, such as `embed_tokens`.
        lora_quantize: `nf4` keeps the frozen linear layers in 4 bits, doubly quantised (Dettmers et al. 2023, QLoRA).
        label_smoothing, z_loss: regularise the cross entropy (`training.scoring.Regularisation`); validation leaves them
            out, so its losses stay comparable. Not for `dpo` and `kto`.
        dpo_loss: the loss on pairs, one of `training.preference.LOSSES`; `simpo` and `orpo` need no reference model.
        dpo_beta: how strongly DPO is tied to the reference model (Rafailov et al. 2023, equation 7); for `simpo` the
            scale of the margin, for `orpo` the weight of the odds ratio (lambda).
        dpo_label_smoothing: the share of pairs that are taken to be swapped: `sigmoid`, `simpo`, `robust` and `exo_pair`
            only; `exo_pair` needs one (its authors take 1e-3).
        dpo_margin: `simpo`'s target margin (gamma).
        dpo_discopop_tau: the temperature of `discopop`'s blend.
        dpo_per_token: compare log-probabilities per token instead of per answer, so that length is no advantage; `ipo`,
            `simpo` and `orpo` always do.
        dpo_wpo: whether each pair's loss is weighted by how likely the model itself would have given its answers
            (`training.preference.self_likelihoods`); validation leaves that out, so its losses stay comparable.
        dpo_nll: the weight of the chosen answers' cross entropy per token, added to the loss; 0 leaves it out.
        kto_loss: `kto` (Ethayarajh et al. 2024), or `apo_zero_unpaired`, which is the same without its zero point
            (D'Oosterlinck et al. 2024).
        kto_beta: how strongly KTO is tied to the reference model.
        kto_desirable_weight, kto_undesirable_weight: how much good and bad answers count (lambda). With n good answers for
            each bad one, KTO's authors choose them so that n times their quotient lies between 1 and 4/3 (equation 8).
    """

    objective: ObjectiveName
    steps: Positive
    rows_per_step: Positive = 8
    accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: Count = 0
    decay_steps: Count = 0
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp8"] = "auto"
    on_bad_step: Literal["halt", "skip", "rewind"] = "halt"
    spike_deviations: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    log_every: Positive = 10
    validate_every: Count = 0
    checkpoint_every: Count = 100
    keep_checkpoints: Positive = 2
    validation_rows: Count = 64
    lora_rank: Count = 0
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    lora_rslora: bool = False
    lora_dora: bool = False
    lora_targets: str | tuple[str, ...] = ALL_LINEAR
    lora_full_modules: tuple[str, ...] = ()
    lora_quantize: Literal["none", "nf4"] = "none"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    dpo_loss: PairLoss = "sigmoid"
    dpo_beta: Annotated[float, Field(gt=0)] = 0.1
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    dpo_margin: Annotated[float, Field(ge=0)] = 0.0
    dpo_discopop_tau: Annotated[float, Field(gt=0)] = 0.05
    dpo_per_token: bool = False
    dpo_wpo: bool = False
    dpo_nll: Annotated[float, Field(ge=0)] = 0.0
    kto_loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    kto_beta: Annotated[float, Field(gt=0)] = 0.1
    kto_desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    kto_undesirable_weight: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _recomputing_is_execution(cls, values: Any) -> Any:
        """Transformers' name of it is what people write; here it changes no result, so it is no part of the identity."""
        if isinstance(values, dict) and "gradient_checkpointing" in values:
            raise ValueError("gradient_checkpointing is `activation_checkpointing: full` under `resources:` here")
        return values

    @model_validator(mode="after")
    def _steps_add_up(self) -> Self:
        if self.rows_per_step % self.accumulation:
            raise ValueError(f"rows_per_step {self.rows_per_step} is not divisible by accumulation {self.accumulation}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps and decay_steps together exceed steps {self.steps}")
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise ValueError(f"schedule `wsd` needs decay_steps and no other takes them (schedule is `{self.schedule}`)")
        if self.lora_rank and not self.lora_targets:
            raise ValueError("lora_rank is set, but lora_targets is empty")
        if self.lora_rank and self.precision == "fp8":
            raise ValueError("precision `fp8` trains whole matrices: set precision `bf16`, or lora_rank 0")
        if self.lora_rank and self.optimizer == "muon":
            raise ValueError("optimizer `muon` trains whole matrices: set optimizer `adamw`, or lora_rank 0")
        for name in ("lora_rslora", "lora_dora", "lora_full_modules", "lora_quantize"):
            if not self.lora_rank and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of adapters, but lora_rank is 0: set a rank, or leave it out")
        return self

    @model_validator(mode="after")
    def _loss_takes_its_settings(self) -> Self:
        if self.dpo_label_smoothing and self.dpo_loss not in SMOOTHED:
            raise ValueError(f"dpo_loss `{self.dpo_loss}` takes no dpo_label_smoothing: leave it out")
        if self.dpo_loss == "exo_pair" and not self.dpo_label_smoothing:
            raise ValueError("dpo_loss `exo_pair` needs dpo_label_smoothing above 0, such as 0.001")
        if self.objective in ("dpo", "kto") and (self.label_smoothing or self.z_loss):
            raise ValueError(f"objective `{self.objective}` takes neither label_smoothing nor z_loss: leave them out")
        if not self.kto_desirable_weight and not self.kto_undesirable_weight:
            raise ValueError("kto_desirable_weight and kto_undesirable_weight are both 0: nothing would be learnt")
        if self.dpo_margin and self.dpo_loss != "simpo":
            raise ValueError(f"dpo_loss `{self.dpo_loss}` takes no dpo_margin: it is simpo's")
        return self


class TrainingJob(Section):
    """A training job's `config`: the model, and the stage. `model` is null where the stage continues its parent `base`."""

    model: ModelConfig | None = None
    training: TrainingConfig
