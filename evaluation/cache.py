"""Samples of models that were asked before: the same bundle, items and harness give the same samples.

The versions of a model share their first stages, so most of what an evaluation is asked was answered for the version
before. A job opts in with `resources: {reuse_samples: true}`: whoever asks at night whether the same bytes still behave the
same wants them asked again. The cache lives in `$GOLDPATH_HOME/cache/samples` and may be deleted any time.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.samples import Sample, dump_samples, parse_samples
from lineage.errors import BadInput
from lineage.files import canonical_json, sha256_text, write_atomic
from lineage.job import Job


def cache_file(job: Job, digest: str, golden: Mapping[str, str], harness: Mapping[str, Any]) -> Path | None:
    """Returns where the samples of a bundle on these items by this harness are kept; None where the job wants no cache."""
    home = os.environ.get("GOLDPATH_HOME")
    if not home or not job.resources.get("reuse_samples"):
        return None
    key = canonical_json({"digest": digest, "golden": golden, "harness": harness})
    return Path(home) / "cache" / "samples" / f"{sha256_text(key)}.jsonl"


def recall(path: Path | None) -> list[Sample] | None:
    """Returns kept samples, or None where there are none or the file is not as it was written: then they are made anew."""
    if path is None:
        return None
    try:
        seal, _, text = path.read_text(encoding="utf-8").partition("\n")
        if json.loads(seal) != {"sha256": sha256_text(text)}:
            return None
        return parse_samples(text, path)
    except (OSError, ValueError, BadInput):
        return None


def keep(path: Path | None, samples: list[Sample]) -> None:
    """Keeps samples for the next evaluation, under the hash of their text."""
    if path is not None:
        text = dump_samples(samples)
        write_atomic(path, json.dumps({"sha256": sha256_text(text)}) + "\n" + text)
