"""Every deployment file is well-formed and says what this code can do: images, commands, flags, settings, metrics."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import PREFIX, Settings
from lineage.job import Job
from lineage.section import parse
from serving.metrics import Observation, TrafficLog
from training.config import TrainingJob
from training.resources import Resources

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
YAML_FILES = sorted(INFRA.rglob("*.yaml"))
KUBERNETES = sorted((INFRA / "kubernetes").glob("*.yaml"))
WORKLOADS = ("Deployment", "TrainingRuntime")
OURS = ("goldpath", "python", "torchrun", "prefect", "mlflow")  # commands that the virtual environment has
PINNED = re.compile(r":v?\d+\.\d+[\w.-]*$")
EMPTY_OBSERVATION = Observation(at=0.0, model="m", digest="sha256:0", arm="stable", status=200, seconds=0.1, empty=True)


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in KUBERNETES:
        for document in documents(path):
            yield f"{path.name}:{document['kind']}", document


def pod_template(body: dict[str, Any]) -> dict[str, Any]:
    """A workload's pod template; a training runtime describes a set of jobs, here of one."""
    template: dict[str, Any] = body["spec"]["template"]
    if body["kind"] == "TrainingRuntime":
        (job,) = template["spec"]["replicatedJobs"]
        template = job["template"]["spec"]["template"]
    return template


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod template with its file and kind."""
    return [(name, pod_template(body)["spec"]) for name, body in manifests() if body["kind"] in WORKLOADS]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def compose_services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = documents(INFRA / "compose.yaml")[0]["services"]
    return services


def commands() -> list[tuple[str, list[str]]]:
    """Every command line that runs this code or its virtual environment, with its place."""
    found = [(name, service["command"]) for name, service in compose_services().items() if "command" in service]
    found += [(f"{name}/{c['name']}", c["command"]) for name, pod in pods() for c in containers(pod) if "command" in c]
    found += [(name, body["spec"]["trainer"]["command"]) for name, body in manifests() if body["kind"] == "TrainJob"]
    return [(name, command) for name, command in found if command[0] in OURS]


@cache
def help_of(*command: str) -> str:
    """What a command's --help says."""
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-500:]}"
    return done.stdout


def split_command(command: list[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Splits a command line into (program with subcommands, its flags): a torchrun line holds two programs."""
    program, *rest = command
    binary = str(Path(sys.executable).parent / program)
    head: tuple[str, ...] = (sys.executable,) if program == "python" else (binary,)
    parts: list[tuple[tuple[str, ...], list[str]]] = []
    flags: list[str] = []
    words = iter(rest)
    for word in words:
        if word == "-m":
            module = next(words)
            assert importlib.util.find_spec(module), f"there is no module {module}"
            if program == "torchrun":
                parts.append((head, flags))
                flags = []
            head = (sys.executable, "-m", module)
        elif word.startswith("--"):
            flags.append(word.partition("=")[0])
        elif not flags:
            head = (*head, word)  # a subcommand; after the first flag, words without dashes are values
    return [*parts, (head, flags)]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_is_well_formed(path: Path) -> None:
    assert documents(path)


def test_every_image_is_pinned() -> None:
    images = [service["image"] for service in compose_services().values()]
    images += [container["image"] for _, pod in pods() for container in containers(pod)]
    for path in (INFRA / "containers").glob("*.Containerfile"):
        images += re.findall(r"^FROM (\S+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(images) > 10
    assert [image for image in images if not PINNED.search(image)] == []


@pytest.mark.parametrize(("place", "command"), commands(), ids=[name for name, _ in commands()])
def test_commands_and_flags_exist(place: str, command: list[str]) -> None:
    if command[:2] == ["python", "-c"]:
        compile(command[2], place, "exec")
        return
    for program, flags in split_command(command):
        said = help_of(*program)
        assert [flag for flag in flags if not re.search(rf"{flag}\b", said)] == [], f"{place}: {program}"


def test_goldpath_settings_are_real() -> None:
    known = {PREFIX + name.upper() for name, field in Settings.model_fields.items() if field.validation_alias is None}
    text = "".join(path.read_text(encoding="utf-8") for path in INFRA.rglob("*") if path.is_file())
    used = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", text))
    assert used
    assert used <= known


@pytest.mark.parametrize(("place", "pod"), pods(), ids=[name for name, _ in pods()])
def test_containers_have_limits_and_drop_rights(place: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in containers(pod):
        limits = container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(limits), container["name"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_deployments_have_probes_on_their_ports() -> None:
    for place, body in manifests():
        if body["kind"] != "Deployment":
            continue
        pod = body["spec"]["template"]["spec"]
        ports = {port[key] for c in pod["containers"] for port in c.get("ports", []) for key in ("name", "containerPort")}
        for container in pod["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[kind]
                assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in ports, f"{place}: {container['name']}"


def test_gpu_workloads_ask_for_gpus() -> None:
    asked = {
        name: int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        for name, pod in pods()
        for container in pod["containers"]
    }
    assert asked["endpoint.yaml:Deployment"] >= 1
    assert asked["train-job.yaml:TrainingRuntime"] >= 1


def test_kustomization_lists_existing_files() -> None:
    resources = documents(INFRA / "kubernetes/kustomization.yaml")[0]["resources"]
    by_hand = {"endpoint.yaml", "train-job.yaml", "kustomization.yaml"}
    assert set(resources) == {path.name for path in KUBERNETES} - by_hand


def test_services_select_pods_and_volumes_are_claimed() -> None:
    everything = list(manifests())
    labels = [pod_template(body).get("metadata", {}).get("labels") for _, body in everything if body["kind"] in WORKLOADS]
    claims = {body["metadata"]["name"] for _, body in everything if body["kind"] == "PersistentVolumeClaim"}
    for name, body in everything:
        if body["kind"] == "Service":
            assert body["spec"]["selector"] in labels, name
    for name, pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert mounted == set(volumes), name
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims, name


def test_training_job_is_one_that_the_stage_accepts() -> None:
    found = documents(INFRA / "kubernetes/train-job.yaml")
    config_map = next(document for document in found if document["kind"] == "ConfigMap")
    job = parse(Job, yaml.safe_load(config_map["data"]["job.yaml"]), "job.yaml")
    parse(TrainingJob, job.config, "job.yaml", "config")
    resources = parse(Resources, job.resources, "job.yaml", "resources")
    train = next(document for document in found if document["kind"] == "TrainJob")["spec"]["trainer"]
    assert resources.processes == train["numNodes"] * train["numProcPerNode"]


def test_training_job_runs_in_its_runtime_and_meets_at_its_first_pod() -> None:
    found = {document["kind"]: document for document in documents(INFRA / "kubernetes/train-job.yaml")}
    runtime, job = found["TrainingRuntime"], found["TrainJob"]
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = pod_template(runtime)["spec"]["containers"]
    # What Kubeflow's torch plugin looks for: this label, and a job and a container of this name.
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert (replicated["name"], container["name"]) == ("node", "node")
    name = job["metadata"]["name"]
    assert f"--rdzv-endpoint={name}-node-0-0.{name}:29400" in job["spec"]["trainer"]["command"]
    reserved = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
    assert not [variable for variable in job["spec"]["trainer"]["env"] if variable["name"] in reserved]
    grace = pod_template(runtime)["spec"]["terminationGracePeriodSeconds"]
    shutdown = next(flag for flag in job["spec"]["trainer"]["command"] if flag.startswith("--shutdown-timeout="))
    assert int(shutdown.partition("=")[2]) < grace


def test_the_door_is_the_same_in_compose_and_on_kubernetes() -> None:
    config_map = next(body for name, body in manifests() if name == "goldpath.yaml:ConfigMap")
    assert config_map["data"]["Caddyfile"] == (INFRA / "Caddyfile").read_text(encoding="utf-8")


def test_dashboard_asks_for_metrics_that_the_gateway_has() -> None:
    log = TrafficLog()
    log.record(EMPTY_OBSERVATION)
    exposed = set(re.findall(r"^(\w+)\{", log.exposition().decode(), flags=re.MULTILINE))
    dashboard = json.loads((INFRA / "monitoring/grafana/gateway.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\bgoldpath_\w+", query)}
    assert len(asked) >= 4
    assert asked <= exposed


def test_prometheus_scrapes_a_port_that_the_door_opens() -> None:
    config = documents(INFRA / "monitoring/prometheus.yaml")[0]
    targets = [target for job in config["scrape_configs"] for group in job["static_configs"] for target in group["targets"]]
    assert targets
    door = (INFRA / "Caddyfile").read_text(encoding="utf-8")
    for target in targets:
        host, _, port = target.partition(":")
        assert host in compose_services()
        assert f"\n:{port} {{" in door
