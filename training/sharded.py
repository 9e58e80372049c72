"""FSDP2: weights, gradients and optimizer state divided over the processes (Zhao et al. 2023, PyTorch FSDP)."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lineage.errors import GoldpathError
from training.engine import AUTOCAST, ReadRange, SingleEngine
from training.model import blocks_of
from training.quantize import move_packed


class Fsdp2Engine(SingleEngine):
    """`fully_shard` on every transformer block and on the root, which keeps embedding and output layer in one group.

    The model comes from the CPU: `fully_shard` moves a block to the device, keeps the shard and lets go of the rest, so a
    GPU holds one whole block at a time and never the whole model. On every micro-batch gradients are reduced into shards:
    full gradients never exist, whatever the accumulation.
    """

    def place(self) -> nn.Module:
        device, offload = self.processes.device, self.resources.offload == "all"
        precision = MixedPrecisionPolicy()
        if self.precision != "fp32":
            precision = MixedPrecisionPolicy(param_dtype=AUTOCAST[self.precision], reduce_dtype=torch.float32)
        policy: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (self.processes.world,)),
            "mp_policy": precision,
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy(),
        }
        move_packed(self.scorer, device)
        for block in blocks_of(self.scorer.model):
            fully_shard(block, **policy)
        fully_shard(self.scorer, **policy)
        unsharded = [name for name, p in self.scorer.named_parameters() if not isinstance(p, DTensor)]
        if unsharded:
            raise GoldpathError(f"FSDP2 left {len(unsharded)} parameters unsharded, the first is {unsharded[0]}")
        if offload and not (
            set(_offloaded(self.scorer)) == {True} and {p.device.type for p in self.scorer.parameters()} == {"cpu"}
        ):
            raise GoldpathError("FSDP2 was asked to keep weights and state on the CPU, but did not")
        return self.scorer

    def whole_norm(self, norm: Tensor) -> Tensor:
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def restore(self, read: ReadRange, updates: int) -> None:
        for part in self.scorer.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # a forward pass without backward leaves the root's weights gathered, and so out of date
        super().restore(read, updates)

    def local_range(self, tensor: Tensor) -> tuple[int, Tensor]:
        """FSDP2 divides the first dimension as `torch.chunk` does: ceil(rows / world) rows each, the last ones fewer."""
        assert isinstance(tensor, DTensor)
        rows_each = -(-tensor.shape[0] // self.processes.world)
        first_row = min(self.processes.rank * rows_each, tensor.shape[0])
        return first_row * (tensor.numel() // tensor.shape[0]), cast(Any, tensor)._local_tensor.view(-1)

    def full_weights(self) -> dict[str, Tensor]:
        gathered = {}
        for name, parameter in self.trained.items():
            full = cast(DTensor, parameter.detach()).full_tensor()  # a collective: every process takes part
            if self.processes.is_first:
                gathered[name] = full.cpu()
        return gathered


def _offloaded(module: nn.Module) -> Iterator[bool]:
    """Yields, for each of FSDP2's groups of parameters, whether it computes with them away from where it keeps them."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            for group in cast(Any, part)._get_fsdp_state()._fsdp_param_groups:
                yield all(parameter.offload_to_cpu for parameter in group.fsdp_params)
