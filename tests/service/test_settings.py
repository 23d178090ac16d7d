"""Settings come from the environment, are checked once, and say what is wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import StartupError
from service.settings import EMBEDDED_MODELS, load_settings, masked, shown_settings


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


def written(folder: Path, text: str) -> str:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_is_read_the_environment_wins_and_options_win_over_both(tmp_path: Path) -> None:
    config = written(tmp_path, 'port = 9001\nthreads = 2\nmax_inputs = 7\ncors_origins = ["https://a.example"]\n')
    environment = {"SPARSELANE_CONFIG": config, "SPARSELANE_PORT": "9002", "SPARSELANE_THREADS": "3"}
    settings = load_settings(environment, threads=4)
    assert (settings.max_inputs, settings.port, settings.threads) == (7, 9002, 4)
    assert settings.cors_origins == ("https://a.example",)
    other = tmp_path / "other.toml"
    other.write_text("max_inputs = 8")
    assert load_settings(environment, config=other).max_inputs == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting prot in .*settings.toml; did you mean 'port'"),
        ("config = 'x'", "unknown setting config"),
        ("port = ", "settings.toml is no TOML: "),
        ("port = 70000", "port in .*settings.toml is '70000': .*65535"),
        ("[port]", "port in .*settings.toml is '{}': input should be a valid integer"),
        ("cors_origins = ['a.example']", "cors_origins in .*: string should match"),
        ("otlp_endpoint = 'https://a:secret@b/?key=secret'", r"is 'https://\*\*\*@b/\?\*\*\*': string should match"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message) as raised:
        load_settings({}, config=written(tmp_path, text))
    assert "secret" not in str(raised.value)


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"missing\.toml cannot be read: No such file"):
        load_settings({"SPARSELANE_CONFIG": str(tmp_path / "missing.toml")})
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe9'")
    with pytest.raises(StartupError, match=r"latin\.toml is no TOML"):
        load_settings({}, config=tmp_path / "latin.toml")


def test_a_list_in_the_environment_has_commas() -> None:
    origins = {"SPARSELANE_CORS_ORIGINS": "https://a.example, http://localhost:3000"}
    assert load_settings(origins).cors_origins == ("https://a.example", "http://localhost:3000")
    assert load_settings({"SPARSELANE_CORS_ORIGINS": ""}).cors_origins == ()
    with pytest.raises(StartupError, match=r"SPARSELANE_CORS_ORIGINS is 'https://a.example/page'"):
        load_settings({"SPARSELANE_CORS_ORIGINS": "https://a.example/page"})


def test_secrets_are_masked_where_settings_are_shown() -> None:
    shown = shown_settings(load_settings({"SPARSELANE_OTLP_ENDPOINT": "https://user:p@ss@collector:4318/v1/traces"}))
    assert shown["otlp_endpoint"] == "https://***@collector:4318/v1/traces"
    assert (shown["port"], shown["models_dir"]) == (8000, str(EMBEDDED_MODELS))
    assert masked("https://a/b?key=1") == "https://a/b?***"
    assert masked("a@b") == "a@b"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings({}).port = 1  # type: ignore[misc]
