"""Kubernetes' Pod Security Standard "restricted" as assertions: what does a pod do that a restricted namespace refuses?

Every control of baseline and restricted as of Kubernetes 1.34; an older server refuses no more.
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP = {"RuntimeDefault", "Localhost"}


def violations(pod: Spec) -> list[str]:
    """What the namespace would refuse of this pod spec; empty: it is admitted."""
    context = pod.get("securityContext", {})
    kinds = ("containers", "initContainers", "ephemeralContainers")
    containers = [container for kind in kinds for container in pod.get(kind, [])]
    return [
        *_host(pod),
        *_volumes(pod),
        *(f"sysctl {s['name']}" for s in context.get("sysctls", []) if s["name"] not in SYSCTLS),
        *_profiles("pod", context),
        *(f"{container['name']}: {found}" for container in containers for found in _container(container, context)),
    ]


def _host(pod: Spec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field


def _volumes(pod: Spec) -> Iterator[str]:
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} of type {kind}"


def _profiles(where: str, context: Spec) -> Iterator[str]:
    """SELinux, AppArmor, Windows, and what else pods and containers have alike."""
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{where}: seLinuxOptions"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{where}: appArmorProfile"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{where}: hostProcess"
    if context.get("runAsUser") == 0:
        yield f"{where}: runAsUser 0"


def _container(container: Spec, pod: Spec) -> Iterator[str]:
    context = container.get("securityContext", {})
    capabilities = context.get("capabilities", {})
    yield from _profiles("container", context)
    if context.get("privileged"):
        yield "privileged"
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot"
    if context.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield "seccompProfile"
    yield from _handlers(container)


def _handlers(container: Spec) -> Iterator[str]:
    """Probes and hooks that make the kubelet ask another host."""
    handlers = [container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")]
    handlers += [container.get("lifecycle", {}).get(hook, {}) for hook in ("postStart", "preStop")]
    for handler in handlers:
        if any(handler.get(way, {}).get("host") for way in ("httpGet", "tcpSocket")):
            yield "host of a probe or hook"
