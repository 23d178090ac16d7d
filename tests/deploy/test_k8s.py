"""k8s/base keeps its comments' promises: probes, stop, rollout, scaling, and who may talk to whom."""

import pytest
import yaml

from service.settings import load_settings
from tests.deploy.rendering import K8S, Manifest, one, pods, rendered

ROOT = K8S.parent
BASE = K8S / "base"
MARGIN_SECONDS = 5  # between the end of the drain and the kubelet's SIGKILL


@pytest.fixture
def manifests() -> list[Manifest]:
    return rendered("base")


@pytest.fixture
def pod(manifests: list[Manifest]) -> Manifest:
    ((_, found),) = pods(manifests)
    return found


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    (found,) = pod["containers"]
    return dict(found)


def settings_file() -> dict[str, str]:
    lines = (BASE / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_file_is_used() -> None:
    """A file that no kustomization names is one that its author believes to be applied."""
    named = set()
    for path in K8S.rglob("kustomization.yaml"):
        if path.is_relative_to(K8S / "overlays" / "monitoring"):
            continue  # has files that Prometheus and Grafana read without kustomize; its own tests look at them
        content = yaml.safe_load(path.read_text())
        listed = [*content.get("resources", []), *content.get("configurations", [])]
        listed += [patch["path"] for patch in content.get("patches", []) if "path" in patch]
        listed += [name for generator in content.get("configMapGenerator", []) for name in generator["envs"]]
        named |= {path, *(path.parent / name for name in listed)}
    there = {path for path in K8S.rglob("*.*") if path.is_file() and "monitoring" not in path.parts}
    assert there - named == {K8S / "components" / "hpa-queue" / "adapter-values.yaml"}  # for Helm


def test_account_has_no_token(manifests: list[Manifest], pod: Manifest) -> None:
    account = one(manifests, "ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False


def test_probes(container: Manifest) -> None:
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
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


def test_rendered_settings_and_image(manifests: list[Manifest]) -> None:
    config = one(manifests, "ConfigMap")
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert config["data"] == settings_file()
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert config["metadata"]["name"] != "sparselane", (
        "the name carries no content hash: a new setting would roll no pod"
    )
    assert not container["image"].endswith((":latest", "sparselane"))


def test_the_autoscaler_alone_says_how_many(manifests: list[Manifest]) -> None:
    """A Deployment that names replicas is set back to them by each apply."""
    scaler, deployment = one(manifests, "HorizontalPodAutoscaler")["spec"], one(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]


def test_a_drained_node_takes_one_pod_and_is_never_stuck(manifests: list[Manifest]) -> None:
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1  # minAvailable would hold a single pod for ever
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_everything_selects_the_pods_and_nothing_else(manifests: list[Manifest], pod: Manifest) -> None:
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    budget, policy = one(manifests, "PodDisruptionBudget")["spec"], one(manifests, "NetworkPolicy")["spec"]
    spread = [constraint["labelSelector"]["matchLabels"] for constraint in pod["topologySpreadConstraints"]]
    assert [budget["selector"]["matchLabels"], policy["podSelector"]["matchLabels"], *spread] == [labels] * 4
    # The pod that fills the models' volume is none of them: the Service would send it requests.
    loader = one(rendered("models-volume"), "Pod")["metadata"]["labels"]
    assert not labels.items() <= loader.items()


def test_spread_over_zones_and_hosts_by_revision(pod: Manifest) -> None:
    spread = pod["topologySpreadConstraints"]
    keys = [constraint["topologyKey"] for constraint in spread]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert all(constraint["matchLabelKeys"] == ["pod-template-hash"] for constraint in spread)


def test_policy_opens_the_probe_port_to_prometheus_and_nothing_but_names_outwards(
    manifests: list[Manifest], container: Manifest
) -> None:
    policy = one(manifests, "NetworkPolicy")["spec"]
    requests, metrics = policy["ingress"]
    assert [port["port"] for port in requests["ports"]] == ["http"]
    assert [port["port"] for port in metrics["ports"]] == ["probes"]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert {"http", "probes"} == {port["name"] for port in container["ports"]}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (names,) = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert all("namespaceSelector" in peer for peer in names["to"])
