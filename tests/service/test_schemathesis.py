"""The server keeps to its OpenAPI document: schemathesis asks what it allows and what not, and checks the answers."""

from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service import artifacts
from tests.service.test_server import Process, running

# Requests per operation, in each of two modes: such as the document allows, and such as it does not.
EXAMPLES = 30
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(artifacts.write_all(tmp_path_factory.mktemp("models")), SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_those_of_the_document(server: Process, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 7
    asked = 0
    for operation in operations:
        takes_something = any((operation.body, operation.path_parameters, operation.query, operation.headers))
        if mode is GenerationMode.NEGATIVE and not takes_something:
            continue  # nothing to get wrong

        @settings(
            max_examples=EXAMPLES if takes_something else 1,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        # The body that this server reads by itself may be anything: then there is nothing to get wrong.
        with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
            check()
    assert asked > EXAMPLES
