"""The peak of this process's resident memory, as the kernel counts it since the program began."""

import re
import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """Returns the peak resident memory of this process.

    `ru_maxrss` would also count what the process was before it became this program: a copy of its parent.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found.group(1)) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
