"""Everything that `kubectl apply -k` sends is valid, strictly: for each Kubernetes we support, and for its own CRD."""

import functools
import json
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from kubernetes_validate import utils

from tests.deploy import custom_resources
from tests.deploy.rendering import Manifest, folders, one, rendered

OLDEST = (1, 30)  # preStop.sleep
KNOWN = dict.fromkeys(map(utils.major_minor, utils.all_versions()))
VERSIONS = [version for version in KNOWN if tuple(map(int, version.split("."))) >= OLDEST]
CUSTOM = {**custom_resources.MODELS, **custom_resources.KSERVE}


def key(manifest: Manifest) -> tuple[str, str]:
    return manifest["apiVersion"], manifest["kind"]


@functools.cache
def different() -> list[Manifest]:
    """The manifests of all folders, each once: most of an overlay is the base."""
    found = {json.dumps(manifest, sort_keys=True): manifest for folder in folders() for manifest in rendered(folder)}
    return list(found.values())


def check(manifest: Manifest) -> None:
    schema = custom_resources.schema(*key(manifest))
    jsonschema.Draft202012Validator(schema).validate(manifest)


def test_at_least_four_versions_are_checked() -> None:
    assert len(VERSIONS) >= 4
    assert VERSIONS[0] == ".".join(map(str, OLDEST))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_of_kubernetes_passes_the_strict_schema(version: str) -> None:
    for manifest in different():
        if key(manifest) not in CUSTOM:
            # SchemaNotFoundError: a kind that this version does not have, and no CRD that we know.
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


@custom_resources.needed
def test_every_custom_resource_passes_its_own_schema() -> None:
    custom = [manifest for manifest in different() if key(manifest) in CUSTOM]
    assert {manifest["kind"] for manifest in custom} >= {"ScaledObject", "ServingRuntime", "InferenceService"}
    for manifest in custom:
        check(manifest)


def test_every_resource_is_in_a_namespace() -> None:
    """Kustomize gives none to what a component adds after the base; such a resource lands wherever the caller is."""
    lost = [f"{m['kind']} {m['metadata']['name']}" for m in different() if "namespace" not in m["metadata"]]
    assert lost == ["Namespace sparselane"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec",)),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "securityContext")),
        ("HorizontalPodAutoscaler", ("spec", "behavior", "scaleUp")),
        ("NetworkPolicy", ("spec", "egress", 0)),
        ("PodDisruptionBudget", ("spec",)),
        ("Service", ("spec", "ports", 0)),
    ],
)
def test_a_misspelt_field_is_seen(kind: str, path: tuple[Any, ...]) -> None:
    manifest = one(rendered("base"), kind)
    functools.reduce(lambda part, step: part[step], path, manifest)["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="'replica' was unexpected"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@custom_resources.needed
@pytest.mark.parametrize(
    ("folder", "kind", "path"),
    [
        ("overlays/keda", "ScaledObject", ("spec", "triggers", 0)),
        ("overlays/kserve", "ServingRuntime", ("spec", "supportedModelFormats", 0)),
        ("overlays/kserve", "ServingRuntime", ("spec", "containers", 0, "lifecycle", "preStop", "sleep")),
        ("overlays/kserve", "InferenceService", ("spec", "predictor", "model")),
        ("overlays/kserve", "InferenceService", ("spec", "predictor", "securityContext")),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_is_seen(folder: str, kind: str, path: tuple[Any, ...]) -> None:
    manifest = one(rendered(folder), kind)
    functools.reduce(lambda part, step: part[step], path, manifest)["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        check(manifest)


@custom_resources.needed
@pytest.mark.parametrize(
    ("kind", "spec", "wrong"),
    [
        ("PodMonitor", {"selector": {}, "podMetricsEndpoints": [{"port": "probes", "intervall": "5s"}]}, "intervall"),
        ("PrometheusRule", {"groups": [{"name": "g", "rules": [{"expr": "1", "alerts": "a"}]}]}, "alerts"),
    ],
)
def test_the_operators_schemas_see_a_misspelt_field(kind: str, spec: Manifest, wrong: str) -> None:
    manifest = {"apiVersion": "monitoring.coreos.com/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(jsonschema.ValidationError, match=f"'{wrong}' was unexpected"):
        check(manifest)
