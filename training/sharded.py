"""FSDP2: weights, gradients and optimizer state divided over the processes (Zhao et al. 2023, PyTorch FSDP)."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lineage.errors import GoldpathError
from training.engine import SingleEngine
from training.model import blocks_of


class Fsdp2Engine(SingleEngine):
    """`fully_shard` on every transformer block and on the root, which keeps embedding and output layer in one group.

    On every micro-batch gradients are reduced into shards: full gradients never exist, whatever the accumulation.
    """

    def place(self) -> nn.Module:
        device, policy = self.processes.device, MixedPrecisionPolicy()
        if self.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device.type, (self.processes.world,))
        for block in blocks_of(self.scorer.model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.scorer, mesh=mesh, mp_policy=policy)
        unsharded = [name for name, p in self.scorer.named_parameters() if not isinstance(p, DTensor)]
        if unsharded:
            raise GoldpathError(f"FSDP2 left {len(unsharded)} parameters unsharded, the first is {unsharded[0]}")
        return self.scorer

    def clip(self) -> Tensor:
        norm = super().clip()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

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
