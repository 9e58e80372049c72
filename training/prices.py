"""What a device costs by the hour: a price table that the user writes, because nobody else knows it."""

import os
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from lineage.section import Section, parse, read_yaml

VARIABLE = "GOLDPATH_PRICES"
CPU = "cpu"
Price = Annotated[float, Field(ge=0)]


class Prices(Section):
    """A price table, such as

        currency: EUR
        per_hour: {cpu: 0.04, H100: 2.9, H200: 3.6}

    Attributes:
        currency: what the prices are in.
        per_hour: for `cpu`, the price of one core for an hour; else of one GPU whose name holds the key, in any case.
            The longest key that fits counts.
    """

    currency: str = "USD"
    per_hour: dict[str, Price]

    def of_hour(self, device: str, units: int) -> float | None:
        """Returns the price of an hour, None where the table does not know the device.

        Args:
            device: `cpu`, or the GPU's name as its driver gives it.
            units: cores, or GPUs.
        """
        fitting = [key for key in self.per_hour if key.lower() in device.lower()]
        return self.per_hour[max(fitting, key=len)] * units if fitting else None


def price_of_hour(device: torch.device, processes: int, threads: int) -> float | None:
    """Returns what the user's table asks for an hour on a run's devices; None where there is none, or it does not say.

    Args:
        threads: cores of each process, where the device is a CPU.

    Raises:
        BadInput: the table cannot be read.
    """
    prices = load_prices()
    if prices is None:
        return None
    if device.type == "cuda":
        return prices.of_hour(torch.cuda.get_device_name(device), processes)
    return prices.of_hour(CPU, processes * threads)


def load_prices() -> Prices | None:
    """Reads the table that GOLDPATH_PRICES names; None where the variable is not set.

    Raises:
        BadInput: the file is missing, or is no price table.
    """
    path = os.environ.get(VARIABLE)
    return parse(Prices, read_yaml(Path(path)), path) if path else None
