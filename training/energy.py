"""Energy, where the device counts it: NVIDIA's GPUs since Volta, and Intel's and AMD's processors (RAPL)."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
NVML_OK = 0


class EnergyMeter:
    """Counts the joules of a device since it was made.

    A processor's counter counts the whole package, whatever else runs on it; only root may read it on many systems.

    Attributes:
        counts: whether the device reports its energy at all.
    """

    def __init__(self, device: torch.device, rapl: Path = RAPL) -> None:
        self._gpu = _nvml_device(device) if device.type == "cuda" else None
        self._packages = [] if device.type == "cuda" else _packages(rapl)
        self._last = self._read()
        self._joules = 0.0
        self.counts = bool(self._last)

    def joules(self) -> float:
        """Returns what was used so far. Ask every few minutes: a processor's counter starts again when it is full."""
        now = self._read()
        for number, (value, size) in now.items():
            before = self._last.get(number, (value, size))[0]
            self._joules += (value - before) % size if size else value - before
        self._last = now
        return self._joules

    def _read(self) -> dict[int, tuple[float, float]]:
        """Returns (joules, joules at which the counter starts again; 0 for never) by counter."""
        if self._gpu is not None:
            library, handle = self._gpu
            used = ctypes.c_ulonglong()  # millijoules since the driver was loaded
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) != NVML_OK:
                return {}
            return {0: (used.value / 1e3, 0.0)}
        found = {}
        for number, folder in enumerate(self._packages):
            with suppress(OSError, ValueError):
                used_here, full = (int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
                found[number] = (used_here / 1e6, full / 1e6)
        return found


def _packages(rapl: Path) -> list[Path]:
    """Returns the counters of whole processors; `intel-rapl:0:1` would be a part of `intel-rapl:0`."""
    return sorted(path for path in rapl.glob("intel-rapl:*") if path.name.count(":") == 1)


def _nvml_device(device: torch.device) -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """Returns NVIDIA's management library and its handle of a GPU; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if library.nvmlInit_v2() != NVML_OK or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) != NVML_OK:
        return None
    return library, handle
