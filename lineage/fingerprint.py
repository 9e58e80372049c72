"""What makes two runs of a stage the same run: its configuration and the bytes that it reads. Nothing else."""

from collections.abc import Mapping
from typing import Any

from lineage.files import canonical_json, sha256_text


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Returns a stage's identity as 64 hex digits.

    Device, process count, ports and paths never enter it: identity is separate from execution.

    Args:
        stage: the stage's name.
        config: the stage's section as plain JSON values (`section.model_dump(mode="json")`).
        inputs: a sha256 per input that the stage reads.

    Raises:
        TypeError, ValueError: the configuration holds something that has no JSON form. A value that cannot be
            serialised cannot be compared, so it is refused instead of being approximated by its `repr`.
    """
    return sha256_text(canonical_json({"stage": stage, "config": config, "inputs": inputs}))
