"""The section `resources:`: how a stage is executed, which is no part of what it is."""

from typing import Literal, Self

from pydantic import model_validator

from lineage.section import Section
from training.choices import OFFLOADING, ZERO_ENGINES, Attention, Checkpointing, EngineName, Kernels, Offload
from training.config import Count, Positive

WITHOUT_WATCHDOG = 86_400  # seconds


class Resources(Section):
    """How a stage is executed. Never part of its identity: the same run on other hardware is the same run.

    Attributes:
        processes: how many processes train together; more than one is started by `torchrun`. Where nodes come and go,
            torchrun may start fewer or more: any number that divides the rows trains the same.
        nodes: over how many machines `goldpath run` divides the processes (`flows.nodes`).
        restarts: how often torchrun starts processes again of which one died; they continue from the newest checkpoint. An
            error that would only come again ends the run at once.
        engine: `single` (one process), `ddp` (a full copy each), `fsdp2` (weights, gradients and optimizer state divided
            over the processes), or DeepSpeed's `zero1` (optimizer state divided), `zero2` (and gradients), `zero3` (and
            weights).
        offload: what lies in the CPU's memory between its uses: nothing, the `optimizer`'s state and master weights
            (`zero1`, `zero2`, `zero3`), or `all` (`zero3`, `fsdp2`: the weights too).
        device: `auto` takes CUDA where there is a GPU.
        threads: CPU threads per process; 0 divides the cores over the processes.
        hang_seconds: a process that gets nowhere for so long is ended, and says where it hung; 0 waits for ever. It must be
            longer than the longest step, checkpoint and compilation.
        activation_checkpointing: what the backward pass computes again instead of keeping it (Chen et al. 2016): `full`,
            all inside each block; `selective`, all but the results of matrix products and of fused attention.
        compile: whether each block is compiled by `torch.compile`; costs a cold start. Engines `single`, `ddp`, `fsdp2`.
        attention: `auto` takes what is quick to train with on the device; `documents` (one after the other) is for CPUs,
            `varlen` (torch's FlashAttention), `flash` (the library's) and `flex` (FlexAttention) need a GPU. All keep
            documents apart.
        kernels: `liger` computes norms, rotary embeddings and gated layers in one kernel each, on GPUs
            (`pip install 'goldpath[liger]'`); `compile` fuses the same, so it is one or the other.
        accelerate_config: a file as `accelerate config` writes it; it then says processes, engine and the like.
        deepspeed_config: a DeepSpeed JSON file; it then says the ZeRO stage, offloading, and DeepSpeed's own settings.
    """

    processes: Positive = 1
    nodes: Positive = 1
    restarts: Count = 3
    engine: EngineName = "single"
    offload: Offload = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count = 0
    hang_seconds: Count = 1800
    activation_checkpointing: Checkpointing = "none"
    compile: bool = False
    attention: Attention = "auto"
    kernels: Kernels = "torch"
    accelerate_config: str = ""
    deepspeed_config: str = ""

    @property
    def grace_seconds(self) -> int:
        """How long a run that was asked to end is left to itself: for the step under way and the checkpoint behind it.

        Both last as long as the state is large. Who knows whether they get anywhere is the run's own watchdog, which ends a
        run that does not: a shorter limit from outside could only kill a checkpoint that is being written.
        """
        return 2 * self.hang_seconds or WITHOUT_WATCHDOG

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        named_elsewhere = self.accelerate_config or self.deepspeed_config
        if self.engine == "single" and self.processes > 1 and not named_elsewhere:
            raise ValueError(
                f"engine `single` is one process, but processes is {self.processes}: choose ddp, fsdp2 or zero3"
            )
        if self.offload != "none" and self.engine not in OFFLOADING[self.offload] and not named_elsewhere:
            able = " or ".join(OFFLOADING[self.offload])
            raise ValueError(f"engine `{self.engine}` cannot offload `{self.offload}`: choose {able}")
        if self.compile and self.engine in ZERO_ENGINES:
            raise ValueError(f"engine `{self.engine}` cannot compile blocks: choose single, ddp or fsdp2")
        if self.compile and self.kernels == "liger":
            raise ValueError("kernels `liger` and compile fuse the same operations: choose one")
        if self.processes % self.nodes:
            raise ValueError(f"processes {self.processes} is not divisible by nodes {self.nodes}")
        return self
