"""Settings come from the environment, are checked once, and say what is wrong."""

import pytest
from pydantic import ValidationError

from service.errors import StartupError
from service.settings import EMBEDDED_MODELS, load_settings


def test_defaults_need_no_environment() -> None:
    settings = load_settings({})
    assert (settings.port, settings.threads, settings.models_dir) == (8000, None, EMBEDDED_MODELS)


def test_the_environment_is_read_and_options_come_first() -> None:
    environment = {"SPARSELANE_PORT": "9001", "SPARSELANE_THREADS": "2", "HOME": "/x", "SPARSELANE_ISA": "avx2"}
    assert (load_settings(environment).port, load_settings(environment).threads) == (9001, 2)
    assert load_settings(environment, port=9002, threads=None).port == 9002


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(StartupError, match="SPARSELANE_THREDS; did you mean 'SPARSELANE_THREADS'"):
        load_settings({"SPARSELANE_THREDS": "2"})


def test_what_kubernetes_adds_for_a_service_of_this_name_is_told_apart() -> None:
    load_settings({"SPARSELANE_SERVICE_HOST": "10.0.0.1", "SPARSELANE_PORT_8000_TCP_PROTO": "tcp"})
    with pytest.raises(StartupError, match="enableServiceLinks: false"):
        load_settings({"SPARSELANE_PORT": "tcp://10.0.0.1:8000"})


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("PORT", "70000", "65535"),
        ("THREADS", "0", "1"),
        ("MAX_INPUTS", "none", "integer"),
        ("DRAIN_SECONDS", "-1", "1"),
        ("LOG_LEVEL", "loud", "debug"),
    ],
)
def test_a_value_outside_its_limits_is_named_with_the_limit(name: str, value: str, limit: str) -> None:
    with pytest.raises(StartupError) as raised:
        load_settings({f"SPARSELANE_{name}": value})
    assert f"SPARSELANE_{name} is '{value}'" in str(raised.value)
    assert limit in str(raised.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings({}).port = 1  # type: ignore[misc]
