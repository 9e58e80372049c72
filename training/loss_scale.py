"""Dynamic loss scaling for fp16 (Micikevicius et al. 2018, Mixed Precision Training, section 3.2)."""

from dataclasses import dataclass

from torch import Tensor

from lineage.errors import GoldpathError

GROW_AFTER = 2000  # updates without overflow; factors and first scale are those of torch's GradScaler


@dataclass
class LossScale:
    """What the loss is multiplied with, so that small gradients are not rounded to zero in fp16.

    A power of two, so that dividing by it is exact. All processes see the same gradient norm and so keep the same scale.

    Attributes:
        scale: halved by an overflow, which also skips its update; doubled after `GROW_AFTER` updates without one.
        quiet: updates since the scale last changed.
        skipped: updates that were skipped since the run began.
    """

    scale: float = 2.0**16
    quiet: int = 0
    skipped: int = 0

    def accept(self, norm: Tensor) -> bool:
        """Takes note of a global gradient norm, (); returns whether its update may be made.

        Raises:
            GoldpathError: gradients overflow even unscaled, so it is not the scale that is too high.
        """
        if bool(norm.isfinite()):
            self.quiet += 1
            if self.quiet == GROW_AFTER:
                self.scale, self.quiet = self.scale * 2, 0
            return True
        if self.scale <= 1:
            raise GoldpathError(
                "fp16: the gradients are no finite numbers, even without loss scaling. "
                "Fix: set `precision: bf16` or `fp32`, or lower `learning_rate`"
            )
        self.scale, self.quiet, self.skipped = self.scale / 2, 0, self.skipped + 1
        return False
