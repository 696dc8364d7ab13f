"""The server's settings: one table, read from flags, environment and one TOML file.

Each setting is one field of `Settings`; its flag, variable and TOML key follow from its name:
`max_streams` is `--max-streams`, `JOBWORKER_MAX_STREAMS` and `max-streams` in the file. A flag
overrides the variable, which overrides the file, which overrides the default. Every value passes
the setting's `Rule`, whatever its source; an error names the source, the value and the bounds.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from worker_service.errors import ConfigurationError
from worker_service.hierarchy import DEFAULT_MOUNT
from worker_service.rule import HOUR_S, Kind, Rule

ENVIRONMENT_PREFIX: Final = "JOBWORKER"

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
TIB: Final = 1024**4

_GRPC_DURATION_MAX_S: Final = 576 * HOUR_S  # 24 days: gRPC counts milliseconds in 31 bits
_MEMORY_MAX_BYTES: Final = 64 * TIB  # x86-64 maps no more; every real bound is the machine's
_THREADS_MAX: Final = 100_000  # each stream and each call takes one
_STOP_GRACE_MAX_S: Final = 3600  # `worker.GRACE_MAX_S`; a test compares them
_JOB_TTL_MAX_S: Final = 10 * 365 * 24 * HOUR_S
_SHOWN_MAX: Final = 100  # characters of a rejected value in an error


def _shown(value: object) -> str:
    """Return a rejected value on one line and cut; Python refuses to print longer integers."""
    if isinstance(value, int) and abs(value) >= 10**_SHOWN_MAX:
        return "a number of more than 100 digits"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _setting(rule: Rule, default: object, text: str) -> Any:  # noqa: ANN401 - dataclasses.field's own type
    return field(default=default, metadata={"rule": rule, "help": text})


def _size(lowest: int, highest: int) -> Rule:
    return Rule(Kind.SIZE, lowest, highest)


def _duration(lowest_s: float, highest_s: float) -> Rule:
    return Rule(Kind.DURATION, lowest_s, highest_s)


def _number(lowest: int, highest: int) -> Rule:
    return Rule(Kind.NUMBER, lowest, highest)


_ADDRESS_RULE: Final = Rule(Kind.ADDRESS)
_LOOPBACK: Final = Rule(Kind.LOOPBACK)
_PATH: Final = Rule(Kind.PATH)
_FLAG: Final = Rule(Kind.FLAG)
_USER: Final = Rule(Kind.USER)
_LOG_LEVEL: Final = Rule(Kind.LOG_LEVEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A server's settings. Sizes are in bytes, durations in seconds."""

    listen: str = _setting(
        _ADDRESS_RULE, "127.0.0.1:50051", "HOST:PORT to listen on; port 0 picks one."
    )
    ca: Path = _setting(_PATH, Path("certs/out/ca.crt"), "CA that signs the client certificates.")
    cert: Path = _setting(_PATH, Path("certs/out/server.crt"), "The server's certificate.")
    key: Path = _setting(_PATH, Path("certs/out/server.key"), "Its private key, mode 0600.")
    deny_serials: Path | None = _setting(
        _PATH, None, "File of denied certificate serial numbers, one per line, in hexadecimal. "
        "Reloaded automatically when it changes; open streams end within 2 s."
    )  # fmt: skip
    limits: bool = _setting(
        _FLAG, True, "Run each job in a cgroup v2 with limits. --no-limits runs jobs without "
        "limits and rejects those that request limits."
    )  # fmt: skip
    cgroup_root: Path = _setting(
        _PATH, DEFAULT_MOUNT / "jobworker", "cgroupfs directory for the jobs; one per server."
    )
    job_user: str | None = _setting(
        _USER, None, "USER or USER:GROUP, names or numbers, to run jobs as, without privileges. By "
        "default they have the server's rights: a job of root can change its own limits and read "
        "the server's key."
    )  # fmt: skip
    stop_grace: float = _setting(
        _duration(0, _STOP_GRACE_MAX_S), 10.0,
        "Time from SIGTERM to SIGKILL, at shutdown and if a stop gives none."
    )  # fmt: skip
    log_retention: int = _setting(
        _size(0, _MEMORY_MAX_BYTES), 0,
        "Most recent output to keep of each job; 0 keeps all of it, in memory."
    )  # fmt: skip
    output_memory: int | None = _setting(
        _size(MIB, _MEMORY_MAX_BYTES), None,
        "Maximum output to keep of all jobs together. Beyond it the oldest is dropped, first that "
        "of the jobs that ended longest ago. By default a quarter of the memory."
    )  # fmt: skip
    job_ttl: float = _setting(
        _duration(0, _JOB_TTL_MAX_S), 0.0,
        "Time after its end for which a job and its output are kept; 0 keeps them until they are "
        "deleted."
    )  # fmt: skip
    max_streams: int = _setting(
        _number(1, _THREADS_MAX), 1000,
        "Maximum number of streams; more get RESOURCE_EXHAUSTED at once."
    )  # fmt: skip
    unary_threads: int = _setting(
        _number(1, _THREADS_MAX), 128, "Maximum number of stops that wait, and of start, query and "
        "all other calls; more of either get RESOURCE_EXHAUSTED at once."
    )  # fmt: skip
    flush_interval: float = _setting(
        _duration(0, 60), 0.005, "Minimum time between two small messages of a stream; after a "
        "pause, output is sent at once. Affects what the server sends."
    )  # fmt: skip
    flush_size: int = _setting(
        _size(1, 32 * MIB), 256 * KIB, "Pending output of this size is sent without waiting for "
        "the interval; so is a full message, and half of --log-retention, so that a reader that "
        "keeps up misses nothing. Affects what the server sends."
    )  # fmt: skip
    message_size: int = _setting(
        _size(KIB, 32 * MIB), 512 * KIB, "Maximum size of an output message, at most 1 MiB; must "
        "fit the client's limit, in gRPC 4 MiB by default. Affects what the server sends."
    )  # fmt: skip
    in_flight: int = _setting(
        _size(MIB, _MEMORY_MAX_BYTES), 64 * MIB,
        "Maximum output in unsent messages of all streams, plus 64 KiB for each."
    )  # fmt: skip
    keepalive_time: float = _setting(
        _duration(1, _GRPC_DURATION_MAX_S), 600.0,
        "Idle time after which the server pings a connection."
    )  # fmt: skip
    keepalive_timeout: float = _setting(
        _duration(1, HOUR_S), 20.0, "Time to answer that ping before the connection is closed."
    )
    max_connection_idle: float = _setting(
        _duration(1, _GRPC_DURATION_MAX_S), 1800.0,
        "A connection without calls is closed after this time."
    )  # fmt: skip
    max_concurrent_streams: int = _setting(
        _number(1, 2**31 - 1), 1000, "Maximum number of concurrent calls on one connection; "
        "clients queue more. Announced by the server, enforced by clients."
    )  # fmt: skip
    max_receive_size: int = _setting(
        _size(KIB, GIB), 4 * MIB, "Maximum size of a request. Affects what clients send."
    )
    stream_window: int = _setting(  # RFC 9113, 6.9.2: 65535 is the initial window
        _size(64 * KIB - 1, GIB), 64 * KIB, "HTTP/2 window of each call; with --connection-window "
        "gRPC announces its own. Affects what the server receives; output is limited by the "
        "client's window."
    )  # fmt: skip
    connection_window: bool = _setting(
        _FLAG, True, "Grow HTTP/2 windows to the bandwidth-delay product (BDP probing); gRPC has "
        "no fixed connection window in Python. Affects what the server receives."
    )  # fmt: skip
    frame_size: int = _setting(  # RFC 9113, 4.2
        _size(16 * KIB, 16 * MIB - 1), 16 * KIB, "Maximum HTTP/2 frame size that the server "
        "accepts; with --connection-window gRPC announces its own. The client's setting applies "
        "to frames that the server sends."
    )  # fmt: skip
    handshake_timeout: float = _setting(
        _duration(0.1, HOUR_S), 20.0,
        "Time to finish the TLS handshake before a connection is closed."
    )  # fmt: skip
    reflection: bool = _setting(_FLAG, True, "Offer gRPC server reflection to admins.")
    metrics: str | None = _setting(
        _LOOPBACK, None, "HOST:PORT on which to serve metrics for Prometheus, by HTTP without "
        "authentication, so a loopback address only; port 0 picks one. Needs prometheus-client "
        "(pip install 'jobworker[metrics]'). Off by default."
    )  # fmt: skip
    log_level: str = _setting(_LOG_LEVEL, "info", "To stderr; audit lines are always written.")

    def __post_init__(self) -> None:
        """Check each setting against its rule.

        Raises:
            ConfigurationError: names the setting, the value received and the values allowed.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not each.default:
                _accept(each, value, flag(each.name))


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{_key(name)}"


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{ENVIRONMENT_PREFIX}_{name.upper()}"


def _key(name: str) -> str:
    return name.replace("_", "-")


def read_settings(
    flags: Mapping[str, object], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Return the settings from all sources; None is a flag that was not given.

    Raises:
        ConfigurationError: names the source of a rejected value, or why the file cannot be used.
    """
    table = _load_toml(file) if file is not None else {}
    accepted = {}
    for each in fields(Settings):
        sources = (
            (flag(each.name), flags.get(each.name)),
            (variable(each.name), environment.get(variable(each.name))),
            (f"{_key(each.name)} in {file}", table.get(_key(each.name))),
        )
        for source, value in sources:
            if value is not None:
                accepted[each.name] = _accept(each, value, source)
                break
    return Settings(**accepted)


def _accept(each: Field[Any], value: object, source: str) -> Any:  # noqa: ANN401 - as `Rule.accept`
    rule: Rule = each.metadata["rule"]
    try:
        return rule.accept(value)
    except ValueError as error:
        raise ConfigurationError(f"{source} is {_shown(value)}; it must be {error}") from None


def _load_toml(path: Path) -> dict[str, object]:
    """Return the settings in a TOML file, by their keys.

    Raises:
        ConfigurationError: unreadable, not TOML, or a key is not a setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also: not UTF-8, a NUL in the path
        raise ConfigurationError(f"settings file {path}: {error}") from error
    known = [_key(each.name) for each in fields(Settings)]
    unknown = [key for key in table if key not in known]
    if unknown:
        raise ConfigurationError(
            f"settings file {path} has the unknown settings {_shown(unknown)}; settings are "
            f"{', '.join(sorted(known))}"
        )
    return table
