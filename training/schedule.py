"""The learning rate, as a pure function of the step: a schedule without state cannot be restored wrongly."""

import math

from training.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Returns the learning rate of a step (the first is 0).

    Warm-up is linear and reaches the peak at step `warmup_steps`. Then `cosine` falls along half a cosine (Loshchilov &
    Hutter 2017), `wsd` stays and falls linearly over the last `decay_steps` (Hu et al. 2024), `constant` stays.
    """
    peak, floor = config.learning_rate, config.learning_rate * config.final_fraction
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.schedule == "wsd":
        left = config.steps - 1 - step
        return floor + (peak - floor) * min(1.0, left / config.decay_steps)
    return peak
