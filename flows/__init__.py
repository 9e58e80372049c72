"""Recipes, plans, Prefect flows, services and the command line: the room that puts the stages together."""

import os

from lineage.privacy import switch_off_telemetry

# Before anything here imports Prefect, which reads its settings once. Without a server's address Prefect would start one
# inside the client, and lose task runs when the client ends; refusing is better.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
switch_off_telemetry()
