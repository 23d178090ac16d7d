"""k8s/base renders, is valid for the oldest and the newest Kubernetes we know, and keeps its comments' promises."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from service.settings import load_settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s" / "base"
MARGIN_SECONDS = 5  # between the end of the drain and the kubelet's SIGKILL

Manifest = dict[str, Any]


def from_files() -> list[Manifest]:
    """The manifests as written, without kustomize: no ConfigMap, no image tag, all else."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [manifest for name in names for manifest in yaml.safe_load_all((BASE / name).read_text())]


def rendered() -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: the manifests are checked as written, not as kustomize renders them")
    output = subprocess.run([kubectl, "kustomize", str(BASE)], capture_output=True, text=True, timeout=60, check=False)
    assert output.returncode == 0, output.stderr
    return list(yaml.safe_load_all(output.stdout))


@pytest.fixture(scope="module", params=[from_files, rendered])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    loaded: list[Manifest] = request.param()
    return loaded


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


@pytest.fixture
def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = one(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    (found,) = pod["containers"]
    return dict(found)


def settings_file() -> dict[str, str]:
    lines = (BASE / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_every_manifest_passes_the_strict_schema(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_see_a_misspelt_field(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, "1.30", strict=True)


def test_every_file_is_listed() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    generated = [name for generator in kustomization["configMapGenerator"] for name in generator["envs"]]
    assert {path.name for path in BASE.iterdir()} == {"kustomization.yaml", *kustomization["resources"], *generated}


def test_restricted_pod_security_standard(pod: Manifest, container: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, every control of "restricted"."""
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & pod["securityContext"].keys()
    # Exactly these keys: nothing in the container loosens what the pod sets.
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= allowed
    assert all("hostPort" not in port for port in container["ports"])


def test_read_only_container_can_write_to_tmp(pod: Manifest, container: Manifest) -> None:
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == "/tmp"
    assert [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume] == [mount["name"]]


def test_no_token_and_no_service_links(manifests: list[Manifest], pod: Manifest) -> None:
    account = one(manifests, "ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    # With links on, a Service of this name would set SPARSELANE_PORT to tcp://...
    assert pod["enableServiceLinks"] is False


def test_probes(container: Manifest) -> None:
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in paths} == {"probes"}


def test_probed_and_scraped_paths_are_routes_of_the_service(manifests: list[Manifest], container: Manifest) -> None:
    app = (ROOT / "service" / "probes.py").read_text()
    annotations = one(manifests, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(container["ports"][1]["containerPort"])
    assert container["ports"][1]["name"] == "probes"
    assert f"SPARSELANE_PROBE_PORT={container['ports'][1]['containerPort']}" in (ROOT / "Dockerfile").read_text()
    for path in ("/readyz", "/healthz", annotations["prometheus.io/path"]):
        assert f'"{path}"' in app, f"{path} is not answered by service/probes.py"


def test_service_reaches_the_container(manifests: list[Manifest], container: Manifest) -> None:
    service, deployment = one(manifests, "Service")["spec"], one(manifests, "Deployment")["spec"]
    (port,), container_port = service["ports"], container["ports"][0]
    assert (port["port"], port["targetPort"]) == (80, container_port["name"])
    assert f"SPARSELANE_PORT={container_port['containerPort']}" in (ROOT / "Dockerfile").read_text()
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()


def test_grace_period_adds_up(pod: Manifest, container: Manifest) -> None:
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = load_settings(settings_file())  # refuses a name or a value that the server would refuse
    assert pod["terminationGracePeriodSeconds"] >= (
        sleep + settings.notice_seconds + settings.drain_seconds + MARGIN_SECONDS
    )


def test_guaranteed_whole_cpus(container: Manifest) -> None:
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1  # "1500m" or "1.5" would not parse


def test_rollout_never_lowers_capacity(manifests: list[Manifest]) -> None:
    rolling = one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert rolling["maxSurge"] >= 1


def test_rendered_settings_and_image() -> None:
    manifests = rendered()
    config = one(manifests, "ConfigMap")
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert config["data"] == settings_file()
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert config["metadata"]["name"] != "sparselane", (
        "the name carries no content hash: a new setting would roll no pod"
    )
    assert not container["image"].endswith((":latest", "sparselane"))
