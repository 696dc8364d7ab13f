"""The settings: sizes, durations, defaults, the file, and what is rejected."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from worker_service.config import Settings, load_toml, parse_duration, parse_size
from worker_service.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("64kB", 64000),
     ("1.5 MiB", 1572864), ("100MB", 10**8), ("1G", 2**30)],
)  # fmt: skip
def test_parse_size_returns_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.5", 0.5), ("5ms", 0.005), ("20s", 20), ("10min", 600), ("10m", 600), ("1h", 3600)],
)
def test_parse_duration_returns_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9999", "nan", "5 parsecs", "KiB", "1__0"])
def test_parse_size_rejects_other_text_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        parse_size(text)


def test_default_timeouts_are_the_originals() -> None:
    settings = Settings()
    assert (settings.keepalive_time, settings.keepalive_timeout) == (600, 20)
    assert settings.max_connection_idle == 1800


def test_load_toml_rejects_a_missing_and_a_malformed_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    with pytest.raises(ConfigurationError, match="No such file"):
        load_toml(path)
    path.write_text("max-streams = \n")
    with pytest.raises(ConfigurationError) as error:
        load_toml(path)
    assert isinstance(error.value.__cause__, tomllib.TOMLDecodeError)


@pytest.mark.parametrize("listen", ["x", ":1", "host:", "host:99999", "host:-1"])
def test_malformed_listen_address_is_rejected(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        Settings(listen=listen)


def test_help_of_every_setting_is_a_sentence() -> None:
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"].endswith(".")
