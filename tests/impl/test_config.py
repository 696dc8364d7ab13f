"""The settings: units and defaults, and what each setting accepts and rejects, from every source.

The tests go through the fields of `Settings`: a new setting is covered by being in the table.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import pytest

from worker_service import cli, config, server, worker
from worker_service.config import Settings, read_settings
from worker_service.errors import ConfigurationError
from worker_service.rule import Kind, Rule

SETTINGS: Final = dataclasses.fields(Settings)
NUMBERS: Final = frozenset({Kind.SIZE, Kind.DURATION, Kind.NUMBER})
SIZE: Final = Rule(Kind.SIZE, 0, 2**63)
DURATION: Final = Rule(Kind.DURATION, 0, 2**31)

type Serve = Callable[..., Settings]


def rule(setting: dataclasses.Field[Any]) -> Rule:
    found: Rule = setting.metadata["rule"]
    return found


def key(setting: dataclasses.Field[Any]) -> str:
    return setting.name.replace("_", "-")


every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
every_number = pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if rule(each).kind in NUMBERS], ids=lambda each: each.name
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("64kB", 64000),
     ("1.5 MiB", 1572864), ("100MB", 10**8), ("1G", 2**30), ("2TiB", 2**41), (".5k", 512)],
)  # fmt: skip
def test_size_in_bytes(text: str, size: int) -> None:
    assert SIZE.accept(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.5", 0.5), ("5ms", 0.005), ("20s", 20.0), ("10min", 600.0), ("10m", 600.0), ("1h", 3600.0),
     ("0.1", 0.1), ("0.1s", 0.1)],
)  # fmt: skip
def test_duration_in_seconds(text: str, seconds: float) -> None:
    assert DURATION.accept(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e3", "1e9999", "nan", "5 parsecs", "KiB", "1_0", "1.", "64\u212a",
             "\u0663", "1\u00b2", "1" * 41, "0.5"],
)  # fmt: skip
def test_size_of_other_text_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example 65536, 64KiB or 100MB"):
        SIZE.accept(text)


def test_default_timeouts_are_the_originals() -> None:
    settings = Settings()
    assert (settings.keepalive_time, settings.keepalive_timeout) == (600, 20)
    assert settings.max_connection_idle == 1800


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("max-streams = \n", "Invalid value"),
        ("max-stream = 1\nmax_streams = 1\n", r"unknown settings \['max-stream', 'max_streams'\]"),
        (f"max-streams = {'1' * 5000}\n", "integer string conversion"),
        (f"max-streams = {'[' * 100_000}\n", "recursion"),
        (b"key = '\xff'\n", "utf-8"),
    ],
)
def test_settings_file_that_cannot_be_used(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match=message) as error:
        read_settings({}, {}, path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "listen", ["x", ":1", "host:", "host:99999", "host:-1", "127.0.0.1:80\u00b2", "::1:80",
               "[::1:80", "[1]:80", "unix:/tmp/x:1", "a b:1", "host:\u0661"],
)  # fmt: skip
def test_malformed_listen_address_is_rejected(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        Settings(listen=listen)


@pytest.mark.parametrize("listen", ["localhost:0", "0.0.0.0:65535", "[::1]:50051", "a-b.c_d:1"])
def test_listen_address_is_accepted(listen: str) -> None:
    assert Settings(listen=listen).listen == listen


@pytest.mark.parametrize("metrics", ["127.0.0.1:0", "127.1.2.3:9464", "[::1]:9464"])
def test_loopback_address_is_accepted_for_metrics(metrics: str) -> None:
    assert Settings(metrics=metrics).metrics == metrics


def test_delivered_settings_file_is_accepted() -> None:
    file = Path(__file__).parents[2] / "impl" / "deploy" / "config.toml"
    settings = read_settings({}, {}, file)
    assert (settings.job_user, settings.metrics) == ("worker-jobs", "127.0.0.1:9464")


def test_flag_overrides_variable_which_overrides_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('max-streams = 1\nlimits = false\nlisten = "[::1]:0"\n')
    environment = {"JOBWORKER_MAX_STREAMS": "2"}
    assert read_settings({}, {}, file) == Settings(max_streams=1, limits=False, listen="[::1]:0")
    assert read_settings({}, environment, file).max_streams == 2
    assert read_settings({"max_streams": "3"}, environment, file).max_streams == 3
    assert read_settings({"limits": True}, environment, file).limits is True


def test_stop_grace_is_bounded_by_what_a_stop_accepts() -> None:
    assert _bound("stop_grace") == worker.GRACE_MAX_S


def _bound(name: str) -> float:
    return next(rule(each).highest for each in SETTINGS if each.name == name)


# What no setting of these kinds accepts, as text and as TOML.
NO_NUMBERS: Final = ("nan", "inf", "-inf", "-1", "1e30", "1" * 40, "lots", "", "1\u00b2", "\u0663")
REJECTED_TEXTS: Final = {
    **dict.fromkeys(NUMBERS, NO_NUMBERS),
    Kind.FLAG: (*NO_NUMBERS, "2", "1.5"),
    Kind.LOG_LEVEL: (*NO_NUMBERS, "1.5", "INFO"),
    Kind.ADDRESS: (*NO_NUMBERS, "1.5", "127.0.0.1:80\u00b2"),
    Kind.LOOPBACK: (
        *NO_NUMBERS,
        "1.5",
        "0.0.0.0:9464",
        "[::]:9464",
        "localhost:9464",
        "10.0.0.1:9464",
        "127.0.0.1",
        "[::1]:99999",
    ),
    Kind.PATH: ("",),
    Kind.USER: ("", ":", "nobody:", ":nogroup", "a:b:c"),
}
REJECTED_TOML: Final = (
    '""', '["a"]', "[]", "{a = 1}", "1979-05-27", "nan", "inf", "-inf", "-1", "1e30",
    "1" + "0" * 30, "0x1" + "0" * 5000,
)  # fmt: skip


def rejected_texts(setting: dataclasses.Field[Any]) -> list[str]:
    texts = list(REJECTED_TEXTS[rule(setting).kind])
    if rule(setting).kind in {Kind.SIZE, Kind.NUMBER}:
        texts += ["1.5", f"{rule(setting).highest + 1}", "1.5e6"]
    if rule(setting).kind is Kind.DURATION:
        texts += [f"{rule(setting).highest + 0.001}"]
    if rule(setting).kind in NUMBERS and rule(setting).lowest:
        texts += ["0"]
    return texts


def rejected_toml(setting: dataclasses.Field[Any]) -> list[str]:
    literals = list(REJECTED_TOML)
    literals += [f'"{text}"' for text in rejected_texts(setting)]
    if rule(setting).kind is not Kind.FLAG:
        literals += ["true"]
    if rule(setting).kind is not Kind.DURATION:
        literals += ["1.5", "1.5e6", "1.0"]
    return literals


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Run `worker-service serve` up to the server's start, and return its settings."""

    def run(*arguments: str, **environment: str) -> Settings:
        started: list[Settings] = []
        with monkeypatch.context() as patch:
            patch.setattr(server, "serve", lambda settings, **_: started.append(settings))
            for name, value in environment.items():
                patch.setenv(name, value)
            cli.main.main(["serve", *arguments], "worker-service", standalone_mode=False)
        return started[0]

    return run


def assert_rejection(line: str, setting: dataclasses.Field[Any], source: str) -> None:
    """Check that an error is one line with the source and what is required."""
    assert line.startswith(f"{source} is "), line
    assert line.endswith(f"; it must be {rule(setting).requirement()}"), line
    assert rule(setting).bounds() in line
    assert "\n" not in line


@every_setting
def test_rejected_texts_of_flag_and_variable(setting: dataclasses.Field[Any]) -> None:
    for text in rejected_texts(setting):
        flag, variable = config.flag(setting.name), config.variable(setting.name)
        for source, flags, environment in (
            (flag, {setting.name: text}, {}),
            (variable, {}, {variable: text}),
        ):
            with pytest.raises(ConfigurationError) as error:
                read_settings(flags, environment, None)
            assert_rejection(str(error.value), setting, source)
            assert str(error.value).startswith(f"{source} is {text!r}; ")


@every_setting
def test_rejected_values_in_file(setting: dataclasses.Field[Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for literal in rejected_toml(setting):
        file.write_text(f"{key(setting)} = {literal}\n")
        with pytest.raises(ConfigurationError) as error:
            read_settings({}, {}, file)
        assert_rejection(str(error.value), setting, f"{key(setting)} in {file}")


@every_setting
def test_command_rejects_a_value_of_each_source_as_a_usage_error(
    setting: dataclasses.Field[Any], serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'{key(setting)} = ["a"]\n')
    name = config.variable(setting.name)
    with pytest.raises(click.UsageError) as error:
        serve("--config", str(file))
    assert_rejection(error.value.format_message(), setting, f"{key(setting)} in {file}")
    with pytest.raises(click.UsageError) as error:
        serve("--config", str(file), **{name: ""})  # a variable overrides the file
    assert_rejection(error.value.format_message(), setting, name)
    if rule(setting).kind is not Kind.FLAG:  # takes no value
        with pytest.raises(click.UsageError) as error:
            serve("--config", str(file), f"{config.flag(setting.name)}=", **{name: ""})
        assert_rejection(error.value.format_message(), setting, config.flag(setting.name))
    assert error.value.exit_code == 2


def test_rejected_values_in_code() -> None:
    for setting in SETTINGS:
        with pytest.raises(ConfigurationError) as error:
            Settings(**{setting.name: ["a"]})  # type: ignore[arg-type] # wrong on purpose
        assert_rejection(str(error.value), setting, config.flag(setting.name))


def test_defaults_are_accepted() -> None:
    for setting in SETTINGS:
        if setting.default is not None:
            assert rule(setting).accept(setting.default) == setting.default
            shown = rule(setting).text(setting.default)
            assert rule(setting).accept(shown) == setting.default


@every_number
def test_bounds_are_accepted_from_each_source(
    setting: dataclasses.Field[Any], serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    for bound in (rule(setting).lowest, rule(setting).highest):
        text = rule(setting).text(bound)
        settings = serve(config.flag(setting.name), text)
        assert getattr(settings, setting.name) == bound
        environment = {config.variable(setting.name): text}
        assert read_settings({}, environment, None) == settings
        for literal in (f"{bound}", f'"{text}"'):
            file.write_text(f"{key(setting)} = {literal}\n")
            assert read_settings({}, {}, file) == settings


def test_help_has_a_sentence_the_variable_the_default_and_the_bounds_of_every_setting() -> None:
    options = {each.name: each.to_info_dict() for each in cli.main.commands["serve"].params}
    for setting in SETTINGS:
        text = options[setting.name]["help"]
        assert setting.metadata["help"].endswith(".")
        assert f"env var: {config.variable(setting.name)}" in text
        assert rule(setting).bounds() in text
        assert setting.default is None or f"default: {rule(setting).text(setting.default)}" in text
