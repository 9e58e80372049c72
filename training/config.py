"""What a training stage is told: the model's dimensions, the recipe of the run, and how to execute it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lineage.section import Section

ObjectiveName = Literal["pretrain", "sft", "dpo"]
EngineName = Literal["single", "ddp", "fsdp2", "zero3"]
PairLoss = Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "simpo", "orpo"]
WITHOUT_REFERENCE: frozenset[PairLoss] = frozenset({"simpo", "orpo"})

# Which kind of packed rows each objective learns from (`packed/<kind>/{train,validation}.safetensors`).
ROW_KINDS: dict[ObjectiveName, str] = {"pretrain": "pretrain", "sft": "sft", "dpo": "preference"}
# Every linear layer of a Llama block: adapting all of them is what works best (Dettmers et al. 2023, QLoRA, section 4).
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class ModelConfig(Section):
    """Which model is trained: an existing one, or a new Llama of these dimensions. The tokenizer decides its vocabulary.

    Attributes:
        base: "" for a new model; else a folder or NAME@VERSION, which reaches the stage as its parent `base`. The
            dimensions below are then those of the base, and what is written here is ignored.
        hidden_size: the width of the residual stream; a multiple of `num_heads`.
        intermediate_size: the width inside the feed-forward layers.
        num_layers, num_heads: blocks, and attention heads per block.
        num_kv_heads: key/value heads per block; fewer than `num_heads` is grouped-query attention.
        max_positions: the longest sequence that the model will serve; at least the packed rows' `seq_len`.
        rope_theta: the base wavelength of the rotary position embedding.
        tie_embeddings: whether the output layer is the transposed input embedding.
    """

    base: str = ""
    hidden_size: Positive = 256
    intermediate_size: Positive = 704
    num_layers: Positive = 6
    num_heads: Positive = 4
    num_kv_heads: Positive = 4
    max_positions: Positive = 1024
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    tie_embeddings: bool = True

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
        objective: `pretrain` and `sft` minimise the cross entropy of target tokens, `dpo` the preference loss of pairs.
        steps: optimizer updates.
        rows_per_step: packed rows per update, over all processes.
        accumulation: forward/backward passes that one update is split into; lowers memory, leaves the update the same.
        learning_rate: the peak, reached after `warmup_steps` of linear warm-up.
        schedule: `cosine` (Loshchilov & Hutter 2017), `wsd` (warm-up, stable, linear decay over the last `decay_steps`;
            Hu et al. 2024, MiniCPM) or `constant`.
        final_fraction: the learning rate at the end as a fraction of the peak; ignored by `constant`.
        weight_decay: AdamW's decay of matrices; norms and biases never decay.
        betas: AdamW's moment decays.
        max_grad_norm: the global gradient norm is clipped to this; 0 leaves it.
        precision: `bf16` computes matrix products in bfloat16 over fp32 master weights; `fp32` computes all in fp32;
            `auto` takes bf16 where the device has instructions for it, else fp32. The record says which it was, and a
            run that is continued elsewhere keeps it.
        on_bad_step: what happens at a step whose loss or gradient is no finite number, or whose loss is a spike. `halt`
            ends the run and names the rows; `skip` leaves the weights as they are and goes on with the next rows; `rewind`
            also goes back to the weights of the newest checkpoint.
        spike_deviations: a loss so many robust standard deviations above the recent ones is a spike (`training.guard`); 0
            looks for none. 8 is a fair value.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        seed: initial weights, adapters and row order.
        log_every, validate_every, checkpoint_every: in steps; 0 for `validate_every` validates before and after only,
            0 for `checkpoint_every` writes none but the last.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        validation_rows: how many validation rows are scored each time; 0 takes all.
        lora_rank: the rank of LoRA adapters (Hu et al. 2021); 0 trains all weights.
        lora_alpha: adapters are scaled by `lora_alpha / lora_rank`.
        lora_targets: names of the linear layers that get an adapter.
        label_smoothing, z_loss: regularise the cross entropy (`training.scoring.Regularisation`); validation leaves them
            out, so its losses stay comparable. Not for `dpo`.
        dpo_loss: the loss on pairs, one of `training.preference.LOSSES`; `simpo` and `orpo` need no reference model.
        dpo_beta: how strongly DPO is tied to the reference model (Rafailov et al. 2023, equation 7); for `simpo` the
            scale of the margin, for `orpo` the weight of the odds ratio (lambda).
        dpo_label_smoothing: the share of pairs that are taken to be swapped: `sigmoid`, `simpo` and `robust` only.
        dpo_margin: `simpo`'s target margin (gamma).
        dpo_per_token: compare log-probabilities per token instead of per answer, so that length is no advantage; `ipo`,
            `simpo` and `orpo` always do.
        dpo_nll: the weight of the chosen answers' cross entropy per token, added to the loss; 0 leaves it out.
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
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    on_bad_step: Literal["halt", "skip", "rewind"] = "halt"
    spike_deviations: Annotated[float, Field(ge=0)] = 0.0
    gradient_checkpointing: bool = False
    seed: Count = 0
    log_every: Positive = 10
    validate_every: Count = 0
    checkpoint_every: Count = 100
    keep_checkpoints: Positive = 2
    validation_rows: Count = 64
    lora_rank: Count = 0
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    lora_targets: tuple[str, ...] = BLOCK_LINEARS
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    dpo_loss: PairLoss = "sigmoid"
    dpo_beta: Annotated[float, Field(gt=0)] = 0.1
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    dpo_margin: Annotated[float, Field(ge=0)] = 0.0
    dpo_per_token: bool = False
    dpo_nll: Annotated[float, Field(ge=0)] = 0.0

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
        return self

    @model_validator(mode="after")
    def _loss_takes_its_settings(self) -> Self:
        if self.dpo_label_smoothing and self.dpo_loss not in ("sigmoid", "robust", "simpo"):
            raise ValueError(f"dpo_loss `{self.dpo_loss}` takes no dpo_label_smoothing: leave it out")
        if self.objective == "dpo" and (self.label_smoothing or self.z_loss):
            raise ValueError("objective `dpo` takes neither label_smoothing nor z_loss: dpo_label_smoothing is its own")
        if self.dpo_margin and self.dpo_loss != "simpo":
            raise ValueError(f"dpo_loss `{self.dpo_loss}` takes no dpo_margin: it is simpo's")
        return self


class Resources(Section):
    """How a stage is executed. Never part of its identity: the same run on other hardware is the same run.

    Attributes:
        processes: how many processes train together; more than one is started by `torchrun`. Where nodes come and go,
            torchrun may start fewer or more: any number that divides the rows trains the same.
        nodes: over how many machines `goldpath run` divides the processes (`flows.nodes`).
        restarts: how often torchrun starts processes again of which one died; they continue from the newest checkpoint. An
            error that would only come again ends the run at once.
        engine: `single` (one process), `ddp` (a full copy each), `fsdp2` or `zero3` (weights, gradients and optimizer
            state divided over the processes).
        device: `auto` takes CUDA where there is a GPU.
        threads: CPU threads per process; 0 divides the cores over the processes.
        hang_seconds: a process that gets nowhere for so long is ended, and says where it hung; 0 waits for ever. It must be
            longer than the longest step, checkpoint and compilation.
    """

    processes: Positive = 1
    nodes: Positive = 1
    restarts: Count = 3
    engine: EngineName = "single"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count = 0
    hang_seconds: Count = 1800

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.engine == "single" and self.processes > 1:
            raise ValueError(
                f"engine `single` is one process, but processes is {self.processes}: choose ddp, fsdp2 or zero3"
            )
        if self.processes % self.nodes:
            raise ValueError(f"processes {self.processes} is not divisible by nodes {self.nodes}")
        return self


class TrainingJob(Section):
    """A training job's `config`: the model, and the stage. `model` is null where the stage continues its parent `base`."""

    model: ModelConfig | None = None
    training: TrainingConfig
