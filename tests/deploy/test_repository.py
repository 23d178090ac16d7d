"""What the repository as a whole promises: it is small, names no machine, and says the same version everywhere."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# Paths of one person's machine, and package servers: both belong in a machine's own configuration.
PRIVATE = re.compile(
    r"""(?<![\w.$}~)-])/(?:root|home|Users|work|workspace)/\w  # an absolute path below someone's home
    |\.\./shared\b
    |pypi\.(?:org|python)|pythonhosted\.|conda\.anaconda
    |(?:index-url|find-links)[ =]+\S+
    |\bPIP_\w*(?:URL|LINKS)=\S""",
    re.VERBOSE,
)


def repository_files() -> list[Path]:
    """Tracked files and those that would be: a mistake shows before it is committed."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of tracked files")
    command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [path for name in output.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_package_server() -> None:
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            if match := PRIVATE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group(0)!r}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["root", "home", "work"])
@pytest.mark.parametrize("before", ["", " ", '"', "=", "file://"])
def test_the_pattern_finds_a_home_directory(folder: str, before: str) -> None:
    assert PRIVATE.search(f"{before}/{folder}/someone")


@pytest.mark.parametrize(
    "text", ["https://host.example/" + "work/x", "docs/" + "work/x", "./" + "home/x", "/workers", "and/or"]
)
def test_the_pattern_leaves_relative_paths_and_addresses_alone(text: str) -> None:
    assert not PRIVATE.search(text)


def test_repository_is_small() -> None:
    total = sum(path.stat().st_size for path in repository_files())
    assert total < 50 * MIB, f"{total / MIB:.1f} MiB are tracked, the limit is 50: large files belong elsewhere"


def test_the_embedded_models_fit_their_budget() -> None:
    sizes: dict[Path, int] = {}
    for path in repository_files():
        if path.is_relative_to(ROOT / "service" / "models"):
            folder = path.parent.relative_to(ROOT)
            sizes[folder] = sizes.get(folder, 0) + path.stat().st_size
    too_large = {str(folder): size for folder, size in sizes.items() if size > 8_000_000}
    assert not too_large, f"larger than 8 MB: {too_large}"
    assert len(sizes) >= 4
    assert sum(sizes.values()) < 24_000_000, sizes


def test_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None, "CHANGELOG.md has no heading like '## 0.1.0'"
    kustomization = yaml.safe_load((ROOT / "k8s" / "base" / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    argument = re.search(r"^ARG VERSION=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert argument is not None
    assert {"changelog": changelog.group(1), "k8s": image["newTag"], "image": argument.group(1)} == dict.fromkeys(
        ("changelog", "k8s", "image"), version
    )
