"""The server's settings: one table, read from flags, environment and one TOML file.

Each setting is one field of `Settings`; its flag, variable and TOML key follow from its name:
`max_streams` is `--max-streams`, `JOBWORKER_MAX_STREAMS` and `max-streams` in the file. A flag
overrides the variable, which overrides the file, which overrides the default.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from worker_service.cgroup import DEFAULT_MOUNT
from worker_service.errors import ConfigurationError

ENVIRONMENT_PREFIX: Final = "JOBWORKER"

KIB: Final = 1024
MIB: Final = 1024 * 1024

_SIZE_UNITS: Final = {
    "": 1, "b": 1, "k": KIB, "kb": 1000, "kib": KIB, "m": MIB, "mb": 1000**2, "mib": MIB,
    "g": 1024 * MIB, "gb": 1000**3, "gib": 1024 * MIB,
}  # fmt: skip
_TIME_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _parse(text: str, units: Mapping[str, float], example: str) -> float:
    digits = text.strip().lower()
    number = digits.rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    unit = digits[len(number) :].strip()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is invalid; write for example {example}") from None
    if not 0 <= value < float(2**63):
        raise ValueError(f"{text!r} is out of range; write for example {example}")
    return value


def parse_size(text: str) -> int:
    """Return bytes for a text such as `65536`, `64KiB` (1024s) or `64kB` (1000s).

    Raises:
        ValueError: with an example of a valid text.
    """
    return int(_parse(text, _SIZE_UNITS, "65536, 64KiB or 100MB"))


def parse_duration(text: str) -> float:
    """Return seconds for a text such as `0.5`, `5ms`, `20s` or `10min`.

    Raises:
        ValueError: with an example of a valid text.
    """
    return _parse(text, _TIME_UNITS, "0.5, 5ms, 20s or 10min")


SIZE: Final = "size"
DURATION: Final = "duration"
NUMBER: Final = "number"
TEXT: Final = "text"
FLAG: Final = "flag"
FILE: Final = "file"


def _setting(kind: str, default: object, text: str, *, least: float = 0) -> Any:  # noqa: ANN401 - dataclasses.field's own type
    return field(default=default, metadata={"kind": kind, "help": text, "least": least})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A server's settings. Sizes are in bytes, durations in seconds."""

    listen: str = _setting(TEXT, "127.0.0.1:50051", "HOST:PORT to listen on; port 0 picks one.")
    ca: Path = _setting(TEXT, Path("certs/out/ca.crt"), "CA that signs the client certificates.")
    cert: Path = _setting(TEXT, Path("certs/out/server.crt"), "The server's certificate.")
    key: Path = _setting(TEXT, Path("certs/out/server.key"), "Its private key, mode 0600.")
    deny_serials: Path | None = _setting(
        FILE, None, "File of denied certificate serial numbers, one per line, in hexadecimal. "
        "Reloaded automatically when it changes; open streams end within 2 s."
    )  # fmt: skip
    limits: bool = _setting(
        FLAG, True, "Run each job in a cgroup v2 with limits. --no-limits runs jobs without limits "
        "and rejects those that request limits."
    )  # fmt: skip
    cgroup_root: Path = _setting(
        TEXT, DEFAULT_MOUNT / "jobworker", "cgroupfs directory for the jobs; one per server."
    )
    stop_grace: float = _setting(
        DURATION, 10.0, "Time from SIGTERM to SIGKILL, at shutdown and if a stop gives none."
    )
    log_retention: int = _setting(
        SIZE, 0, "Most recent output to keep of each job; 0 keeps all of it, in memory."
    )
    max_streams: int = _setting(
        NUMBER, 1000, "Maximum number of streams; more get RESOURCE_EXHAUSTED at once.", least=1
    )
    unary_threads: int = _setting(
        NUMBER, 128, "Threads for start, stop and query, in addition to the streams'.", least=1
    )
    flush_interval: float = _setting(
        DURATION, 0.005, "Minimum time between two small messages of a stream; after a pause, "
        "output is sent at once. Affects what the server sends."
    )  # fmt: skip
    flush_size: int = _setting(
        SIZE, 256 * KIB, "Pending output of this size is sent without waiting for the interval. "
        "Affects what the server sends.", least=1
    )  # fmt: skip
    message_size: int = _setting(
        SIZE, 512 * KIB, "Maximum size of an output message; must fit the client's limit, in gRPC "
        "4 MiB by default. Affects what the server sends.", least=KIB
    )  # fmt: skip
    in_flight: int = _setting(
        SIZE, 64 * MIB, "Maximum output in unsent messages of all streams, plus 64 KiB for each.",
        least=MIB
    )  # fmt: skip
    keepalive_time: float = _setting(
        DURATION, 600.0, "Idle time after which the server pings a connection.", least=1
    )
    keepalive_timeout: float = _setting(
        DURATION, 20.0, "Time to answer that ping before the connection is closed.", least=1
    )
    max_connection_idle: float = _setting(
        DURATION, 1800.0, "A connection without calls is closed after this time.", least=1
    )
    max_concurrent_streams: int = _setting(
        NUMBER, 1000, "Maximum number of concurrent calls on one connection; clients queue more. "
        "Announced by the server, enforced by clients.", least=1
    )  # fmt: skip
    max_receive_size: int = _setting(
        SIZE, 4 * MIB, "Maximum size of a request. Affects what clients send.", least=KIB
    )
    stream_window: int = _setting(
        SIZE, 64 * KIB, "HTTP/2 window of each call. Affects what the server receives; output is "
        "limited by the client's window.", least=64 * KIB - 1
    )  # fmt: skip
    connection_window: bool = _setting(
        FLAG, True, "Grow HTTP/2 windows to the bandwidth-delay product (BDP probing); gRPC has no "
        "fixed connection window in Python. Affects what the server receives."
    )  # fmt: skip
    frame_size: int = _setting(
        SIZE, 16 * KIB, "Maximum HTTP/2 frame size that the server accepts; the client's setting "
        "applies to frames that the server sends.", least=16 * KIB
    )  # fmt: skip
    handshake_timeout: float = _setting(
        DURATION, 20.0, "Time to finish the TLS handshake before a connection is closed.", least=0.1
    )
    reflection: bool = _setting(FLAG, True, "Offer gRPC server reflection to admins.")
    log_level: str = _setting(
        TEXT, "info", "debug, info, warning or error, to stderr; audit lines are always written."
    )

    def __post_init__(self) -> None:
        """Check each setting against its bound.

        Raises:
            ConfigurationError: names the setting, the value received and the values allowed.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            least = each.metadata["least"]
            if each.metadata["kind"] in {SIZE, DURATION, NUMBER} and value < least:
                raise ConfigurationError(
                    f"{flag(each.name)} is {value}; it must be at least {least}"
                )
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise ConfigurationError(
                f"--log-level is {self.log_level!r}; it must be debug, info, warning or error"
            )
        host, separator, port = self.listen.rpartition(":")
        if not (separator and host and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 - ports
            raise ConfigurationError(f"--listen is {self.listen!r}; it must be HOST:PORT")


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def convert(name: str, text: str) -> object:
    """Return a setting's value from its text.

    Raises:
        ValueError: with an example of a valid text.
    """
    each = next(each for each in fields(Settings) if each.name == name)
    match each.metadata["kind"]:
        case "size":
            return parse_size(text)
        case "duration":
            return parse_duration(text)
        case "number":
            return int(text)
        case "file":
            return Path(text)
        case _:
            return Path(text) if isinstance(each.default, Path) else text


def load_toml(path: Path) -> dict[str, object]:
    """Return the settings in a TOML file, by the names of their fields.

    Raises:
        ConfigurationError: unreadable, not TOML, or a key is not a setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path}: {error}") from error
    known = {each.name for each in fields(Settings) if each.default is not MISSING}
    found = {key.replace("-", "_"): value for key, value in table.items()}
    unknown = sorted(set(found) - known)
    if unknown:
        names = ", ".join(sorted(name.replace("_", "-") for name in known))
        raise ConfigurationError(
            f"--config {path} has unknown settings: {', '.join(unknown)}; settings are {names}"
        )
    return found
