"""Telemetry off, in one place: every process that Goldpath starts gets these variables."""

import os

# MLflow takes only the literal `true` for DO_NOT_TRACK.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def switch_off_telemetry() -> None:
    """Sets the variables in this process; call it before the libraries are imported."""
    os.environ.update(TELEMETRY_OFF)
