"""`python -m harness vulncheck`: audit the locked packages for known vulnerabilities."""

import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from packaging.version import Version

from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.vulncheck.audit import (
    Audit,
    AuditOutcome,
    Service,
    audit,
    installed_pins,
    live_service,
    require_canaries,
    require_complete,
)
from harness.vulncheck.database import ADVISORIES, ALLOW_STALE, RECORDS_MIN, load_database
from harness.vulncheck.endpoint import Endpoint, serve
from harness.vulncheck.pins import Pin, parse_pin, read_pins

# Advisories are published daily; a database that is a month old lacks some.
FRESH_DAYS: Final = 30
# Tolerance for clock skew; a record dated later makes the database's date meaningless.
FUTURE_MAX: Final = dt.timedelta(days=1)


@click.command()
@click.option(
    "--requirements",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pinned and hashed requirements [default: requirements.lock, and installed packages].",
)
@click.option(
    "--offline",
    envvar=ADVISORIES,
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Query this dump of advisories (OSV's all.zip of PyPI), not the live OSV service.",
)
@click.option(
    "--allow-stale",
    envvar=ALLOW_STALE,
    show_envvar=True,
    is_flag=True,
    help=f"Accept a dump older than {FRESH_DAYS} days; the result is marked STALE with its date.",
)
@click.option(
    "--also", "extra", multiple=True, help="Also audit this package, NAME==VERSION; repeatable."
)
def vulncheck(
    requirements: Path | None, offline: Path | None, extra: tuple[str, ...], *, allow_stale: bool
) -> None:
    """Audit the locked packages for known vulnerabilities.

    Exit code 0: clean. 1: vulnerabilities found. 2: inconclusive, nothing was audited.

    `make vulncheck` exits with 0 or, as make does on any failure, with 2; the output distinguishes
    the two failures.
    """
    try:
        outcome = _check(requirements, offline, extra, allow_stale=allow_stale)
    except BrokenError as error:
        click.echo(f"NOT AUDITED: {error}", err=True)
        outcome = AuditOutcome.NOT_AUDITED
    sys.exit(outcome)


def _check(
    path: Path | None, offline: Path | None, extra: tuple[str, ...], *, allow_stale: bool
) -> AuditOutcome:
    pins, described = _chosen_pins(path, extra)
    with _service(offline) as endpoint:
        as_of = _as_of(endpoint, allow_stale=allow_stale)
        service = Service(endpoint.url, is_own=True) if endpoint is not None else live_service()
        for canary, flags in require_canaries(service).items():
            click.echo(f"canary {canary.pin} ({canary.kind}): flagged by {flags} advisories")
        result = audit(pins, service)
        require_complete(result, pins)
        if endpoint is not None:
            _require_used(endpoint, pins, result)
    for each in result.vulnerabilities:
        fixed = f"; fixed in {', '.join(each.fixed_in)}" if each.fixed_in else "; no known fix"
        click.echo(f"FOUND {each.package} {each.version}: {each.advisory}{fixed}")
    count = f"{len(result.audited)} packages ({described})"
    if result.vulnerabilities:
        click.echo(f"FOUND: {len(result.vulnerabilities)} vulnerabilities in {count}, {as_of}")
        return AuditOutcome.FOUND
    click.echo(f"CLEAN: {count}, {as_of}")
    return AuditOutcome.CLEAN


def _require_used(endpoint: Endpoint, pins: list[Pin], result: Audit) -> None:
    """Require that every pin was queried, and that no answer was dropped.

    Raises:
        BrokenError: pip-audit left a pin out, or does not report one that the database flags.
    """
    reported = {(each.package, Version(each.version)) for each in result.vulnerabilities}
    wanted = {(pin.name, pin.version) for pin in pins}
    for what, missing in (
        ("query", wanted - endpoint.queried()),
        ("report", (wanted & endpoint.affected()) - reported),
    ):
        if missing:
            shown = ", ".join(f"{name}=={version}" for name, version in sorted(missing))
            raise BrokenError(f"pip-audit did not {what} {shown}")


def _chosen_pins(path: Path | None, extra: tuple[str, ...]) -> tuple[list[Pin], str]:
    """Return the pins to audit, and a clause that counts them by source.

    With the project's own lock file the installed packages are audited too, since they are what
    runs.
    """
    lock = path or ROOT / "requirements.lock"
    read = read_pins(lock)
    pins = [pin for pin in read if pin.applies]
    parts = [f"{len(pins)} pinned in {lock.name}"]
    if elsewhere := len(read) - len(pins):
        parts.append(f"{elsewhere} more for other machines not audited")
    if path is None:
        installed = installed_pins()
        pinned = {(pin.name, pin.version) for pin in pins}
        more = [pin for pin in installed if (pin.name, pin.version) not in pinned]
        pins += more
        parts.append(f"all {len(installed)} installed packages")
        if more:
            parts.append(f"not from the lock file: {', '.join(map(str, more))}")
    pins += [parse_pin(text) for text in extra]
    return pins, "; ".join(parts)


@contextmanager
def _service(offline: Path | None) -> Iterator[Endpoint | None]:
    """Serve a dump; yield None for the live OSV service."""
    if offline is None:
        yield None
        return
    with serve(load_database(offline)) as endpoint:
        yield endpoint


def _as_of(endpoint: Endpoint | None, *, allow_stale: bool) -> str:
    """Return a clause that names the advisory source and its date.

    Raises:
        BrokenError: the database is incomplete, stale or dated in the future.
    """
    now = dt.datetime.now(dt.UTC)
    if endpoint is None:
        return f"by {live_service()} on {now:%Y-%m-%d %H:%MZ}"
    database = endpoint.database
    days = (now - database.date).days
    skipped = "".join(f", {count} {reason}" for reason, count in database.skipped.items())
    click.echo(f"database: {database.size} advisories, newest {database.date:%Y-%m-%d}{skipped}")
    if database.size < RECORDS_MIN:
        raise BrokenError(
            f"the database has {database.size} advisories for PyPI packages; a complete one has at "
            f"least {RECORDS_MIN}; fetch OSV's all.zip of PyPI again"
        )
    if database.date > now + FUTURE_MAX:
        raise BrokenError(
            f"the database is dated {database.date:%Y-%m-%d}, in the future: its age is unknown; "
            "fetch another, or correct this machine's clock"
        )
    if days <= FRESH_DAYS:
        return f"by a database of {database.date:%Y-%m-%d}"
    if not allow_stale:
        raise BrokenError(
            f"the database of {database.date:%Y-%m-%d} is {days} days old; fetch a newer one, or "
            "use it all the same with --allow-stale"
        )
    return f"by a STALE database of {database.date:%Y-%m-%d}, {days} days old"
