"""What fields may custom resources have? Schemas made of their projects' own packages (tests/pins/crds.txt), strict.

KEDA's and the Prometheus operator's come from pydantic models that were generated from the CRDs; KServe's from the
classes of its SDK, generated from its API's types. Where those have Kubernetes' own types they refer to its schemas.
"""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

Schema = dict[str, Any]

FOLDER = Path(sys.prefix) / "crds"
needed = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no schemas of custom resources in {FOLDER}: run `make setup`")
# apiVersion and kind, and where it is: module and class.
MODELS = {
    ("keda.sh/v1alpha1", "ScaledObject"): "cloudcoil.models.keda.v1alpha1",
    ("monitoring.coreos.com/v1", "PodMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "cloudcoil.models.prometheus_operator.v1",
}
KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
SCALARS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
PRINT_SCHEMAS = """
import importlib, json, sys
names = json.loads(sys.argv[1])
print(json.dumps([getattr(importlib.import_module(m), k).model_json_schema(by_alias=True) for m, k in names]))
"""


def schema(api_version: str, kind: str) -> Schema:
    """The strict JSON schema of a custom resource; KeyError where no package has it."""
    if (api_version, kind) in KSERVE:
        return _kserve(KSERVE[api_version, kind])
    return _strict(_printed()[api_version, kind])


@functools.cache
def _printed() -> dict[tuple[str, str], Schema]:
    """In a process of its own: the packages are no part of the environment."""
    names = json.dumps([(module, kind) for (_, kind), module in MODELS.items()])
    command = [sys.executable, "-c", PRINT_SCHEMAS, names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(FOLDER)})
    assert done.returncode == 0, done.stderr
    return dict(zip(MODELS, json.loads(done.stdout), strict=True))


def _strict(schema: Any) -> Any:
    """As the API server with fieldValidation=Strict: a field that is not in the schema is an error."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # An optional field is "this or null" there. We write none as null, and without it a message names the wrong field.
    some = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    if len(some) == 1:
        return _strict({name: part for name, part in schema.items() if name != "anyOf"} | some[0])
    tightened = {name: _strict(part) for name, part in schema.items()}
    if "properties" in schema and isinstance(schema.get("type"), str):
        tightened.setdefault("additionalProperties", False)
    return tightened


@functools.cache
def _kserve(name: str) -> Schema:
    definitions = dict(_kubernetes())
    _define(name, definitions)
    return {"$ref": f"#/$defs/{name}", "$defs": definitions}


def _kubernetes() -> Schema:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    newest = folder / f"v{kubernetes_validate.latest_version()}-local-strict" / "_definitions.json"
    definitions: Schema = json.loads(newest.read_text())["$defs"]
    return definitions


def _define(name: str, definitions: Schema) -> None:
    """Add the schema of a class of KServe's SDK, and of the classes that it names."""
    if name in definitions:
        return
    definitions[name] = {}  # being made: classes may name each other
    module = FOLDER / "kserve" / "models" / f"{_snake(name)}.py"
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    types, keys = tables["openapi_types"], tables["attribute_map"]
    properties = {keys[field]: _typed(types[field], definitions) for field in types}
    definitions[name] = {"type": "object", "properties": properties, "additionalProperties": False}


def _typed(text: str, definitions: Schema) -> Schema:
    if match := re.fullmatch(r"list\[(.+)\]", text):
        return {"type": "array", "items": _typed(match[1], definitions)}
    if match := re.fullmatch(r"dict\(str, (.+)\)", text):
        return {"type": "object", "additionalProperties": _typed(match[1], definitions)}
    if text in SCALARS:
        return {"type": SCALARS[text]}
    if (FOLDER / "kserve" / "models" / f"{_snake(text)}.py").exists():
        _define(text, definitions)
        return {"$ref": f"#/$defs/{text}"}
    found = [key for key in definitions if key.endswith(f".{_kubernetes_name(text)}")]
    # The SDK lacks a few classes that it names (V1alpha1WorkerSpec, parts of status): such a field we may not use.
    return {"$ref": f"#/$defs/{found[0]}"} if len(found) == 1 else {"not": {}}


def _kubernetes_name(text: str) -> str:
    """K8sIoApiAppsV1DeploymentStrategy and V1Container are apps.v1.DeploymentStrategy and core.v1.Container there."""
    if match := re.fullmatch(r"K8sIoApi([A-Z][a-z]+)V(\d)(\w+)", text):
        return f"{match[1].lower()}.v{match[2]}.{match[3]}"
    names = {"ResourceQuantity": "resource.Quantity", "V1ObjectMeta": "v1.ObjectMeta"}
    return names.get(text, f"core.v1.{text.removeprefix('V1')}")


def _snake(name: str) -> str:
    """V1beta1ONNXRuntimeSpec is in v1beta1_onnx_runtime_spec.py."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
