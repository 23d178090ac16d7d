"""Each overlay does what its comment says, with names, limits and metrics of the service; and they go together."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from service.call import LONGEST_TIMEOUT_MS
from service.metrics import Metrics
from service.models import Models
from service.settings import Settings, load_settings
from tests.deploy.rendering import K8S, KUBECTL, Manifest, folders, one, pods, rendered

SERVERS = [folder for folder in folders() if folder == "base" or folder.startswith("overlays/")]


def server(folder: str) -> tuple[Manifest, Manifest]:
    """The pod that serves, and its container."""
    ((_, pod),) = pods(rendered(folder))
    (container,) = pod["containers"]
    return pod, container


def environment(folder: str) -> dict[str, str]:
    """What the container's process finds set."""
    _, container = server(folder)
    maps = {m["metadata"]["name"]: m["data"] for m in rendered(folder) if m["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", [])}


@pytest.fixture(scope="module")
def metrics_page() -> str:
    return Metrics(Models({}, {}), []).page().decode()


def mounted(folder: str, path: str) -> tuple[Manifest, Manifest]:
    """The mount at a path, and its volume."""
    pod, container = server(folder)
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == path]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    return mount, volume


@pytest.mark.parametrize("folder", SERVERS)
def test_the_server_takes_the_settings(folder: str) -> None:
    settings = load_settings(environment(folder))  # refuses a name or a value that the server would refuse
    pod, container = server(folder)
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > sleep + settings.notice_seconds + settings.drain_seconds
    assert settings.request_timeout_ms / 1000 <= settings.drain_seconds


def test_keys_are_a_folder_of_a_secret_that_the_server_may_read() -> None:
    path = load_settings(environment("overlays/keys")).keys_file
    assert path is not None
    mount, volume = mounted("overlays/keys", str(path.parent))
    assert "subPath" not in mount, "a file of its own would never see a changed Secret"
    assert "optional" not in volume["secret"], "without the Secret the pod must wait, not serve everybody"
    pod, _ = server("overlays/keys")
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_models_come_from_the_volume_that_the_loader_fills() -> None:
    folder = load_settings(environment("overlays/models-pvc")).models_dir
    mount, volume = mounted("overlays/models-pvc", str(folder))
    assert mount["readOnly"] is volume["persistentVolumeClaim"]["readOnly"] is True
    claim = one(rendered("models-volume"), "PersistentVolumeClaim")
    loader = one(rendered("models-volume"), "Pod")["spec"]
    names = [v["persistentVolumeClaim"]["claimName"] for v in loader["volumes"] if "persistentVolumeClaim" in v]
    assert [volume["persistentVolumeClaim"]["claimName"]] == names == [claim["metadata"]["name"]]
    assert loader["containers"][0]["image"] != server("base")[1]["image"], "kubectl cp needs tar, our image has none"


def test_the_proxy_lets_through_what_the_server_takes() -> None:
    notes = one(rendered("overlays/ingress-tls"), "Ingress")["metadata"]["annotations"]
    body = Settings.model_fields["max_body_bytes"].default
    for name in ("nginx.ingress.kubernetes.io/proxy-body-size", "nginx.org/client-max-body-size"):
        assert int(notes[name].removesuffix("m")) << 20 > body
    for name in ("nginx.ingress.kubernetes.io/proxy-read-timeout", "nginx.org/proxy-read-timeout"):
        assert int(notes[name].removesuffix("s")) * 1000 > LONGEST_TIMEOUT_MS


def test_operations_stay_inside() -> None:
    spec = one(rendered("overlays/ingress-tls"), "Ingress")["spec"]
    (rule,) = spec["rules"]
    assert [host for entry in spec["tls"] for host in entry["hosts"]] == [rule["host"]]
    prefixes = [path["path"] for path in rule["http"]["paths"]]
    for path in ("/metrics", "/healthz", "/readyz", "/admin/reload", "/info"):
        assert not any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes), path
    service = one(rendered("overlays/ingress-tls"), "Service")
    backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert all(b["name"] == service["metadata"]["name"] and b["port"]["name"] in ports for b in backends)


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes_of_ours(metrics_page: str) -> None:
    values = yaml.safe_load((K8S / "components" / "hpa-queue" / "adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    metrics = one(rendered("overlays/hpa-queue"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    cpu, wait = metrics
    assert cpu == one(rendered("base"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]
    assert wait["pods"]["metric"]["name"] == rule["name"]["as"]
    series, _, labels = rule["seriesQuery"].partition("{")
    assert f"\n{series} " in metrics_page
    assert {resource["resource"] for resource in rule["resources"]["overrides"].values()} == {"namespace", "pod"}
    assert all(f"{label}!=" in labels for label in rule["resources"]["overrides"])


def test_scaling_to_zero_has_one_owner_and_something_that_wakes_it(metrics_page: str) -> None:
    manifests = rendered("overlays/keda")
    assert not [m for m in manifests if m["kind"] == "HorizontalPodAutoscaler"], "KEDA makes one: two would fight"
    scaled, deployment = one(manifests, "ScaledObject")["spec"], one(manifests, "Deployment")
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicaCount"] == 0
    queries = {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["triggers"]}
    assert "sparselane_" not in queries["requests"], "pods that are not there report nothing"
    assert one(manifests, "Ingress")
    assert "sparselane_predicted_wait_seconds{" in queries["wait"]
    assert "\nsparselane_predicted_wait_seconds " in metrics_page
    # KEDA refuses a fallback beside triggers of another kind.
    assert {trigger["metricType"] for trigger in scaled["triggers"]} == {"AverageValue"}


def test_kserve_runs_the_container_of_the_base() -> None:
    (pod, container), (base_pod, base) = server("overlays/kserve"), server("base")
    ours = {"name", "env", "envFrom", "securityContext"}
    assert {k: v for k, v in container.items() if k not in ours} == {k: v for k, v in base.items() if k not in ours}
    assert pod["terminationGracePeriodSeconds"] == base_pod["terminationGracePeriodSeconds"]
    assert environment("overlays/kserve") == environment("base") | {"SPARSELANE_MODELS_DIR": "/mnt/models"}
    # Names that KServe asks for.
    runtime, service = (one(rendered("overlays/kserve"), kind) for kind in ("ServingRuntime", "InferenceService"))
    assert container["name"] == "kserve-container"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in {f["name"] for f in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    claim = one(rendered("models-volume"), "PersistentVolumeClaim")["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}"


def test_an_overlay_of_the_users_takes_components_settings_a_namespace_and_a_digest(tmp_path: Path) -> None:
    """The example of docs/operations.md, beside a checkout."""
    here = os.path.relpath(K8S, tmp_path.resolve())
    digest = "sha256:" + 64 * "0"
    overlay = {
        "namespace": "answers",
        "resources": [f"{here}/base"],
        "components": [f"{here}/components/{name}" for name in ("hpa-queue", "ingress-tls", "keys", "models-pvc")],
        "configMapGenerator": [
            {"name": "sparselane", "behavior": "merge", "literals": ["SPARSELANE_MAX_BODY_BYTES=1048576"]}
        ],
        "images": [{"name": "sparselane", "newName": "registry.example/sparselane", "digest": digest}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    manifests = list(yaml.safe_load_all(done.stdout))
    assert one(manifests, "Namespace")["metadata"]["name"] == "answers"
    assert {m["metadata"].get("namespace", "answers") for m in manifests} == {"answers"}
    ((_, pod),) = pods(manifests)
    config = one(manifests, "ConfigMap")
    assert config["data"].items() > {"SPARSELANE_MAX_BODY_BYTES": "1048576", "SPARSELANE_LOG_FORMAT": "json"}.items()
    assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"] == config["metadata"]["name"]
    assert pod["containers"][0]["image"] == f"registry.example/sparselane@{digest}"
    assert {volume["name"] for volume in pod["volumes"]} == {"keys", "models", "tmp"}
    assert {variable["name"] for variable in pod["containers"][0]["env"]} == {
        "SPARSELANE_KEYS_FILE",
        "SPARSELANE_MODELS_DIR",
    }
