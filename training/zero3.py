"""DeepSpeed ZeRO stage 3: weights, gradients and optimizer state divided over the processes (Rajbhandari et al. 2020)."""

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lineage.errors import GoldpathError
from training.batches import Batch
from training.config import TrainingConfig
from training.engine import KEPT, MOMENTS, Engine, LossOf, Piece, ReadRange
from training.processes import Processes
from training.scoring import Scorer


class Zero3Engine(Engine):
    """DeepSpeed's engine. bf16 means bf16 weights in the layers over fp32 master weights in the optimizer."""

    def __init__(self, scorer: Scorer, config: TrainingConfig, processes: Processes) -> None:
        super().__init__(scorer, config, processes)
        if processes.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        import deepspeed

        # Its shared-memory all-reduce for CPUs is compiled on first use, for up to 90 s with gcc; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed still calls torch.distributed by names that torch calls deprecated, twice a layer and step.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.init_distributed("nccl" if processes.device.type == "cuda" else "gloo", auto_mpi_discovery=False)
        self.trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self.trained.items()}  # DeepSpeed empties the parameters themselves
        self.engine, self._optimizer, _, _ = deepspeed.initialize(
            model=scorer, optimizer=self.make_optimizer(), config=self._settings(), dist_init_required=False
        )
        if self.engine.zero_optimization_stage() != 3 or any(p.numel() for p in self.trained.values()):
            raise GoldpathError("DeepSpeed was asked for ZeRO stage 3 but did not divide the parameters")

    def _settings(self) -> dict[str, Any]:
        config, world = self.config, self.processes.world
        return {
            "train_micro_batch_size_per_gpu": config.rows_per_step // (world * config.accumulation),
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": config.max_grad_norm,
            "bf16": {"enabled": self.precision == "bf16"},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,  # torch's fused AdamW, the same as in every other engine
            "steps_per_print": 2**31,
        }

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        scores: Tensor = self.engine(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
        return scores

    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        with self.clock("forward"):
            loss = loss_of(self.engine(batch.input_ids, batch.position_ids, batch.predictors, batch.targets))
        with self.clock("backward"):
            self.engine.backward(loss * self.processes.world, scale_wrt_gas=False)  # DeepSpeed averages over processes
        return loss.detach()

    def clip(self) -> Tensor:
        """DeepSpeed clips while it updates: here the norm is only looked at. Its own mark for a norm that is none is -1."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norm = float(combine_grad_norm_groups(self._optimizer._get_norm_groups()))
        return torch.as_tensor(norm if norm >= 0 else float("nan"))

    def apply(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    def forget(self) -> None:
        self._optimizer._overflow_clean_up(None)

    def pieces(self) -> Iterator[Piece]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        for name, parameter in self.trained.items():
            start, stop = self._local_range(parameter)
            for part in KEPT:
                moment = part != "weight"
                padded = safe_get_local_optimizer_state(parameter, part) if moment else safe_get_local_fp32_param(parameter)
                yield Piece(name, part, start, padded[: stop - start])

    def restore(self, read: ReadRange, updates: int) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        flats = self._optimizer.fp32_partitioned_groups_flat
        for flat in flats:  # before its first step torch's AdamW has no state to write into
            state: dict[str, Tensor] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._optimizer.optimizer.state[flat] = {"step": torch.tensor(float(updates), device=flat.device), **state}
        for name, parameter in self.trained.items():
            start, stop = self._local_range(parameter)
            for part in KEPT:
                padded = torch.zeros(parameter.ds_tensor.ds_numel, device=self.processes.device)  # type: ignore[attr-defined]
                padded[: stop - start] = read(name, part, start, stop)
                if part == "weight":
                    safe_set_local_fp32_param(parameter, padded)
                else:
                    safe_set_local_optimizer_state(parameter, padded, part)
        for group in range(len(flats)):  # as after a step: from the fp32 masters to the layers' own weights
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)

    def _local_range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Returns this process's range of a flattened parameter; DeepSpeed's padding is no state."""
        each, total = parameter.ds_tensor.ds_numel, parameter.ds_numel  # type: ignore[attr-defined]
        start = min(self.processes.rank * each, total)
        return start, min(start + each, total)

    def full_weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        gathered = {}
        for name, parameter in self.trained.items():
            full = safe_get_full_fp32_param(parameter)  # a collective: every process takes part
            if self.processes.is_first:
                gathered[name] = full.view(self._shapes[name]).cpu().clone()
        return gathered
