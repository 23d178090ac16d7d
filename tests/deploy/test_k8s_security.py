"""Every pod that our manifests make is one that a restricted namespace admits, and does not do more than it must."""

import functools
from typing import Any

import pytest

from tests.deploy.pod_security import violations
from tests.deploy.rendering import folders, one, pods, rendered

each_folder = pytest.mark.parametrize("folder", folders())


@each_folder
def test_restricted_pod_security_standard(folder: str) -> None:
    manifests = rendered(folder)
    made = {m["kind"] for m in manifests} & {"CronJob", "DaemonSet", "Deployment", "InferenceService", "Job", "Pod"}
    assert {kind: violations(pod) for kind, pod in pods(manifests)} == {kind: [] for kind in made}


@each_folder
def test_more_than_the_standard_asks(folder: str) -> None:
    for _, pod in pods(rendered(folder)):
        assert pod["automountServiceAccountToken"] is False
        # With links on, a Service of this name would set SPARSELANE_PORT to tcp://...
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 10001
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]


def test_a_server_writes_to_its_own_tmp_alone() -> None:
    for folder in folders():
        for kind, pod in pods(rendered(folder)):
            (container,) = pod["containers"]
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable == ({"/tmp", "/models"} if kind == "Pod" else {"/tmp"}), folder
            assert {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}} in pod["volumes"]


@each_folder
def test_the_namespace_enforces_the_standard(folder: str) -> None:
    labels = one(rendered(folder), "Namespace")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


CONTAINER = ("containers", 0)
HOST = {"httpGet": {"path": "/", "port": 1, "host": "10.0.0.1"}}


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("hostPID",), True, "hostPID"),
        (("volumes",), [{"name": "v", "hostPath": {"path": "/"}}], "volume v of type hostPath"),
        (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctl kernel.msgmax"),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "server: seccompProfile"),
        (("securityContext", "runAsNonRoot"), None, "server: runAsNonRoot"),
        (("securityContext", "runAsUser"), 0, "pod: runAsUser 0"),
        (("securityContext", "seLinuxOptions"), {"type": "spc_t"}, "pod: seLinuxOptions"),
        (("securityContext", "appArmorProfile"), {"type": "Unconfined"}, "pod: appArmorProfile"),
        (("securityContext", "windowsOptions"), {"hostProcess": True}, "pod: hostProcess"),
        ((*CONTAINER, "securityContext", "privileged"), True, "server: privileged"),
        ((*CONTAINER, "securityContext", "allowPrivilegeEscalation"), None, "server: allowPrivilegeEscalation"),
        ((*CONTAINER, "securityContext", "capabilities", "add"), ["SYS_ADMIN"], "server: capabilities"),
        ((*CONTAINER, "securityContext", "capabilities", "drop"), [], "server: capabilities"),
        ((*CONTAINER, "securityContext", "procMount"), "Unmasked", "server: procMount"),
        ((*CONTAINER, "securityContext", "runAsUser"), 0, "server: container: runAsUser 0"),
        ((*CONTAINER, "securityContext", "runAsNonRoot"), False, "server: runAsNonRoot"),
        ((*CONTAINER, "ports"), [{"containerPort": 1, "hostPort": 1}], "server: hostPort"),
        ((*CONTAINER, "livenessProbe"), HOST, "server: host of a probe or hook"),
        (("initContainers",), [{"name": "copy", "image": "x"}], "copy: allowPrivilegeEscalation"),
    ],
)
def test_a_pod_that_breaks_a_control_is_refused(path: tuple[Any, ...], value: Any, found: str) -> None:
    ((_, pod),) = pods(rendered("base"))
    functools.reduce(lambda part, step: part[step], path[:-1], pod)[path[-1]] = value
    assert found in violations(pod)
