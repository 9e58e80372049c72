"""The data stage: row schemas, contracts, quarantine, decontamination, packed tokens, and data versions."""
