"""The optimizers: AdamW, AdamW with 8-bit state, and Muon. Each weight's state is a few tensors that have names."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state per weight, in torch's names
MOMENTUM = "momentum_buffer"  # Muon's
EIGHT_BIT = ("state1", "state2", "absmax1", "absmax2")  # bitsandbytes' codes, and the scale of each block of them
MUON_MOMENTUM = 0.95
# Coefficients of the quintic x (a + b x^2 + c x^4) that drives singular values towards 1 (Jordan et al. 2024, Muon).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
LIKE_ADAMW = 0.2  # the root mean square of AdamW's updates (Liu et al. 2025, Muon is Scalable for LLM Training, 2.2)


def make_optimizers(
    trained: Mapping[str, nn.Parameter], by_token: frozenset[int], config: "TrainingConfig"
) -> list[torch.optim.Optimizer]:
    """Returns the optimizers that together update all trained parameters. Matrices decay, vectors do not.

    Muon takes the matrices inside the blocks; embeddings, output layer and vectors stay with AdamW, as Jordan et al. do it.

    Args:
        trained: the trained parameters by name.
        by_token: the `id` of those in embeddings and output layer, whose rows stand for single tokens.
    """
    hidden = [p for p in trained.values() if config.optimizer == "muon" and p.ndim == 2 and id(p) not in by_token]
    by_muon = {id(p) for p in hidden}
    rest = [p for p in trained.values() if id(p) not in by_muon]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [_adamw(groups, config)] if groups else []
    if hidden:
        dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        optimizers.append(Muon(hidden, config.learning_rate, config.weight_decay, dtype))
    return optimizers


def state_of(optimizers: Iterable[torch.optim.Optimizer], parameter: nn.Parameter) -> dict[str, Tensor]:
    """Returns a parameter's state tensors by name; {} before its first update."""
    found = (optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state)
    state: dict[str, Any] = next(found, {})
    return {part: state[part] for part in (*MOMENTS, MOMENTUM, *EIGHT_BIT) if part in state}


def begin_state(optimizers: Iterable[torch.optim.Optimizer], parameter: nn.Parameter, updates: int) -> None:
    """Gives a parameter a state like that after some updates; its values are still to be filled in."""
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            for index, one in enumerate(group["params"]):
                if one is parameter:
                    _begin(optimizer, parameter, updates, (number, index))


def _begin(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, updates: int, place: tuple[int, int]) -> None:
    if isinstance(optimizer, Muon):
        optimizer.state[parameter] = {MOMENTUM: torch.zeros_like(parameter)}
    elif isinstance(optimizer, torch.optim.AdamW):
        moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(updates), device=parameter.device), **moments}
    else:
        eight_bit = cast(Any, optimizer)
        eight_bit.init_state(eight_bit.param_groups[place[0]], parameter, *place)
        eight_bit.state[parameter]["step"] = updates


def _adamw(groups: list[dict[str, Any]], config: "TrainingConfig") -> torch.optim.Optimizer:
    """Returns AdamW (Loshchilov & Hutter 2019), where it is asked for with 8-bit state (Dettmers et al. 2022)."""
    if config.optimizer != "adamw_8bit":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
    return optimizer


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal (Jordan et al. 2024), with decoupled weight decay.

    Per matrix W (rows, columns) with gradient G, momentum m = 0.95 and learning rate r:

        B = m B + (1 - m) G;  U = orthogonal part of m B + (1 - m) G
        W = (1 - r decay) W - 0.2 r sqrt(max(rows, columns)) U

    The last factor gives updates the size of AdamW's, so that both share one learning rate and decay (Liu et al. 2025,
    equation 4). `torch.optim.Muon` is the same, but knows no sharded matrices: here each process gathers the whole update,
    makes it orthogonal and keeps its own rows. That repeats the arithmetic on every process and is equal on all of them.

    Args:
        dtype: what matrix products are computed in; bf16 is accurate enough for a direction.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is taken
        """Updates all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                momentum = state.setdefault(MOMENTUM, torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MUON_MOMENTUM)
                update = self._orthogonal(matrix.grad.lerp(momentum, MUON_MOMENTUM))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-LIKE_ADAMW * group["lr"] * max(matrix.shape) ** 0.5)

    def _orthogonal(self, update: Tensor) -> Tensor:
        if type(update) is Tensor:
            return orthogonal_part(update, self.dtype)
        from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import, and here it is already

        shard = cast(DTensor, update)
        whole = orthogonal_part(shard.full_tensor(), self.dtype)
        return distribute_tensor(whole, shard.device_mesh, shard.placements, src_data_rank=None)  # no communication


def orthogonal_part(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns nearly U V^T of a matrix U S V^T, by Newton-Schulz iteration: singular values come to lie within 0.7 and 1.2.

    Args:
        matrix: (rows, columns).
        dtype: what is computed in; the result has the matrix's own.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
