"""DeepSpeed ZeRO: optimizer state, gradients and weights divided over the processes (Rajbhandari et al. 2020)."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lineage.errors import BadInput, GoldpathError
from training.batches import Batch
from training.config import TrainingConfig
from training.deepspeed_file import execution_options
from training.engine import Engine, LossOf, Piece, ReadRange
from training.optimizers import MOMENTS
from training.processes import Processes
from training.quantize import move_packed
from training.resources import Resources
from training.scoring import Scorer


@dataclass(frozen=True)
class _Share:
    """Where this process keeps its part of one parameter.

    Attributes:
        start, length: the part, as a range of the flattened parameter; DeepSpeed's padding is no part of it.
        flat: the fp32 master weights of many parameters in one tensor; the optimizer's state lies alike.
        offset: where the part begins in `flat`.
    """

    start: int
    length: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Returns the view of this part in the master weights or in a state tensor."""
        return tensor.detach().narrow(0, self.offset, self.length)


class _InMixedPrecision(nn.Module):
    """The scorer, computed under an autocast."""

    def __init__(self, scorer: Scorer, mixed_precision: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.scorer, self.mixed_precision = scorer, mixed_precision

    def forward(self, *tensors: Tensor) -> Tensor:
        """Takes and returns what the scorer does."""
        with self.mixed_precision():
            scores: Tensor = self.scorer(*tensors)
        return scores


class ZeroEngine(Engine):
    """DeepSpeed's engine, at the stage in its name.

    bf16 means bf16 weights in the layers over fp32 master weights in the optimizer. fp16 is what it is in every other
    engine: autocast over fp32 weights, with Goldpath's loss scale; DeepSpeed's own fp16 weights exist on GPUs only.
    """

    def __init__(
        self, scorer: Scorer, config: TrainingConfig, processes: Processes, resources: Resources | None = None
    ) -> None:
        super().__init__(scorer, config, processes, resources)
        self.stage = int(self.resources.engine[-1])
        if processes.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        os.environ.setdefault("LOCAL_RANK", "0")  # it insists on one, also where it is alone
        import deepspeed

        # Its shared-memory all-reduce for CPUs is compiled on first use, for up to 90 s with gcc; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed still calls torch.distributed by names that torch calls deprecated, twice a layer and step.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.init_distributed("nccl" if processes.device.type == "cuda" else "gloo", auto_mpi_discovery=False)
        self.trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self.trained.items()}  # stage 3 empties the parameters themselves
        (optimizer,) = self.make_optimizers()
        # DeepSpeed switches off an autocast that it finds around its forward pass, so fp16's lies inside.
        model = _InMixedPrecision(scorer, self.mixed_precision) if self.precision == "fp16" else scorer
        settings = self._settings()
        try:
            if self.stage == 3:
                self._divide(model, settings)
            self.engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError) as error:
            if not self.resources.deepspeed_config:
                raise
            reason = " ".join(str(error).split())[:200]
            raise BadInput(self.resources.deepspeed_config, "", f"DeepSpeed refuses it ({reason})", "correct it") from None
        self._shares = {name: share for name, p in self.trained.items() if (share := self._share_of(p)) is not None}
        self._require_placement()

    def _divide(self, model: nn.Module, settings: dict[str, Any]) -> None:
        """Divides the weights one by one, each on the device while it is divided and no longer.

        `deepspeed.initialize` would do it too, but has the whole model on the device before, which need not hold it.
        """
        import deepspeed

        if self.precision == "bf16":  # what is divided has its final type
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16) if parameter.is_floating_point() else parameter.data
        move_packed(model, self.processes.device)
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.processes.device)

    def _settings(self) -> dict[str, Any]:
        config, world, offload = self.config, self.processes.world, self.resources.offload
        to_cpu = {"device": "cpu", "pin_memory": self.processes.device.type == "cuda"}
        zero: dict[str, Any] = {
            "stage": self.stage,
            **({"stage3_param_persistence_threshold": 0} if self.stage == 3 else {}),
        }
        if offload != "none":
            zero["offload_optimizer"] = to_cpu
        if offload == "all":
            zero["offload_param"] = to_cpu
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": config.rows_per_step // (world * config.accumulation),
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": config.max_grad_norm,
            "bf16": {"enabled": self.precision == "bf16"},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_allow_untested_optimizer": True,  # torch's fused AdamW, the same as in every other engine
            "zero_force_ds_cpu_optimizer": False,  # and the same where it computes on the CPU
            "steps_per_print": 2**31,
        }
        extra = execution_options(self.resources.deepspeed_config)
        return settings | extra | {"zero_optimization": zero | extra.get("zero_optimization", {})}

    def _require_placement(self) -> None:
        """Asserts what was asked for: the stage, the division, and where masters and weights lie."""
        found = int(self.engine.zero_optimization_stage())
        if found != self.stage:
            raise GoldpathError(f"DeepSpeed was asked for ZeRO stage {self.stage}, but is at stage {found}")
        # A file may let it keep the smallest parameters whole, beside the divided ones.
        if self.stage == 3 and any(p.numel() for p in self.trained.values() if not p.ds_persist):  # type: ignore[attr-defined]
            raise GoldpathError("DeepSpeed was asked for ZeRO stage 3 but did not divide the parameters")
        held, whole = sum(share.length for share in self._shares.values()), sum(s.numel() for s in self._shapes.values())
        if self.processes.sum(torch.tensor([float(held)])).item() != whole:
            raise GoldpathError(f"DeepSpeed divided {whole:,} weights so that the processes do not hold each one once")
        if self.resources.offload == "none":
            return
        flags = "offload_optimizer" if self.stage == 3 else "cpu_offload"
        on_cpu = all(share.flat.device.type == "cpu" for share in self._shares.values())
        if not getattr(self._optimizer, flags) or not on_cpu:
            raise GoldpathError("DeepSpeed was asked to keep the optimizer's state on the CPU, but did not")
        weights_on_cpu = self.stage == 3 and all(p.ds_tensor.device.type == "cpu" for p in self.trained.values())  # type: ignore[attr-defined]
        if self.resources.offload == "all" and not (weights_on_cpu and self._optimizer.offload_param):
            raise GoldpathError("DeepSpeed was asked to keep the weights on the CPU, but did not")

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        scores: Tensor = self.engine(batch.input_ids, batch.position_ids, batch.predictors, batch.targets)
        return scores

    def learn(self, batch: Batch, loss_of: LossOf, last: bool) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        if self.loss_scale:
            self._optimizer.override_loss_scale(self.loss_scale.scale)
        with self.clock("forward"):
            loss = loss_of(self.engine(batch.input_ids, batch.position_ids, batch.predictors, batch.targets))
        with self.clock("backward"):
            self.engine.backward(loss * self.processes.world, scale_wrt_gas=False)  # DeepSpeed averages over processes
        return loss.detach()

    def clip(self) -> Tensor:
        """DeepSpeed clips while it updates: here the norm is only looked at."""
        norm = self._norm()
        if self.loss_scale:
            norm = norm / self.loss_scale.scale
            if not self.loss_scale.accept(norm):  # DeepSpeed finds the same norm, and discards the update by itself
                return torch.zeros(())
        return norm

    def apply(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    def forget(self) -> None:
        if hasattr(self._optimizer, "clear_hp_grads"):  # stage 1 in bf16
            self._optimizer.clear_hp_grads()
            self._optimizer.clear_lp_grads()
            return
        # DeepSpeed discards an update whose norm is no number, so it is told of such a norm.
        finder = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        invalid = torch.tensor(float("inf"), device=self.processes.device)
        setattr(self._optimizer, finder, lambda: [invalid] if self.stage == 3 else invalid)
        self.engine.step()
        delattr(self._optimizer, finder)

    def _norm(self) -> Tensor:
        """Returns the global norm of the gradients as they are, scaled in fp16; infinite where it is no number."""
        from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors

        if self.stage == 3:
            norm = combine_grad_norm_groups(self._optimizer._get_norm_groups())
        elif hasattr(self._optimizer, "get_grads_for_norm"):  # stage 1 in bf16
            gradients, _ = self._optimizer.get_grads_for_norm()
            norm = get_global_norm_of_tensors(gradients)
        else:
            norm = self._optimizer.scaled_global_norm()
        number = float(norm)
        return torch.tensor(number if number >= 0 else float("inf"))  # its own mark for a norm that is none is -1

    def pieces(self) -> Iterator[Piece]:
        for name, share in self._shares.items():
            state = self._optimizer.optimizer.state.get(share.flat, {})
            for part, tensor in [("weight", share.flat), *((moment, state[moment]) for moment in MOMENTS if state)]:
                yield Piece(name, part, share.start, share.of(tensor))
        yield from self.scale_pieces()

    def restore(self, read: ReadRange, updates: int) -> None:
        updates = self.restore_scale(read, updates)
        if self.stage == 3:  # what was gathered is of before
            self._optimizer._partition_all_parameters()
        self._optimizer.optimizer.state.clear()  # a run that goes back may go back to before the first update
        for flat in self._flats() if updates else ():  # before its first update torch's AdamW has no state to write into
            state: dict[str, Tensor] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._optimizer.optimizer.state[flat] = {"step": torch.tensor(float(updates), device=flat.device), **state}
        for name, share in self._shares.items():
            state = self._optimizer.optimizer.state.get(share.flat, {})
            for part, tensor in [("weight", share.flat), *((moment, state[moment]) for moment in MOMENTS if state)]:
                share.of(tensor).copy_(read(name, part, share.start, share.start + share.length))
        if self.stage == 3:
            for group in range(len(self._flats())):  # as after a step: from the fp32 masters to the layers' own weights
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        else:
            for name, parameter in self.trained.items():
                parameter.detach().view(-1).copy_(read(name, "weight", 0, parameter.numel()))

    def _flats(self) -> list[Tensor]:
        """Returns the flat fp32 master weights of this process, one per group of the optimizer."""
        if self.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [group["params"][0] for group in self._optimizer.optimizer.param_groups]

    def _share_of(self, parameter: nn.Parameter) -> _Share | None:
        """Returns this process's part of a parameter, None where it has none."""
        if self.stage == 3:
            each, total = parameter.ds_tensor.ds_numel, parameter.ds_numel  # type: ignore[attr-defined]
            start = min(self.processes.rank * each, total)
            group, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
            share = _Share(start, min(each, total - start), self._flats()[group], offset)
            return share if share.length else None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return _Share(here.start, here.numel, self._flats()[mapping.param_group_index], there.start)

    def full_weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        gathered = {}
        for name, parameter in self.trained.items():
            full = safe_get_full_fp32_param(parameter)  # a collective: every process takes part
            if self.processes.is_first:
                gathered[name] = full.view(self._shapes[name]).cpu().clone()
        return gathered
