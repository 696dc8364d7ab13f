"""`python -m harness vulncheck`."""

import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from packaging.utils import canonicalize_name

from harness.host.repository import ROOT
from harness.record.verdict import BrokenError
from harness.vulncheck.audit import (
    CANARY,
    AuditOutcome,
    audit,
    is_pin,
    locked_packages,
    require_canary,
    require_complete,
)
from harness.vulncheck.database import ADVISORIES, ALLOW_STALE, RECORDS_MIN, load_database
from harness.vulncheck.endpoint import Endpoint, serving

# Advisories come out daily; a database that is a month old has missed some.
FRESH_DAYS: Final = 30
# Clocks differ; a record from later than that is wrong, and so is every date of its database.
FUTURE_MAX: Final = dt.timedelta(days=1)


@click.command()
@click.option(
    "--requirements",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pinned and hashed requirements; default: the project's lock file.",
)
@click.option(
    "--offline",
    envvar=ADVISORIES,
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ask this dump of advisories (OSV's all.zip of PyPI) instead of OSV's service.",
)
@click.option(
    "--allow-stale",
    envvar=ALLOW_STALE,
    show_envvar=True,
    is_flag=True,
    help=f"Let a dump older than {FRESH_DAYS} days do; the result says so and gives its date.",
)
@click.option("--also", "extra", multiple=True, help="NAME==VERSION to audit too; repeatable.")
def vulncheck(
    requirements: Path | None, offline: Path | None, extra: tuple[str, ...], *, allow_stale: bool
) -> None:
    """Audit the locked packages. Exit code 0: clean, 1: vulnerabilities found, 2: not audited.

    The three are this program's. `make vulncheck` ends with make's own: 0 when this is 0, else 2,
    be it found or not audited; what is printed says which.
    """
    try:
        outcome = _check(requirements or ROOT / "requirements.lock", offline, extra, allow_stale)
    except BrokenError as error:
        click.echo(f"NOT AUDITED: {error}", err=True)
        outcome = AuditOutcome.NOT_AUDITED
    sys.exit(outcome)


def _check(
    path: Path,
    offline: Path | None,
    extra: tuple[str, ...],
    allow_stale: bool,  # noqa: FBT001 - from a flag
) -> AuditOutcome:
    lock = _lock_text(path, extra)
    wanted = locked_packages(lock)
    with _service(offline) as endpoint:
        as_of = _as_of(endpoint, allow_stale=allow_stale)
        url = endpoint.url if endpoint is not None else None
        flagged = require_canary(url)
        click.echo(f"canary {CANARY}: flagged by {flagged} advisories, as it must be")
        result = audit(lock, url)
        require_complete(result, wanted)
        if endpoint is not None and not wanted <= endpoint.asked():
            raise BrokenError(f"the database was not asked about {wanted - endpoint.asked()}")
    for each in result.vulnerabilities:
        fixed = f"; fixed in {', '.join(each.fixed_in)}" if each.fixed_in else "; no fix is known"
        click.echo(f"FOUND {each.package} {each.version}: {each.advisory}{fixed}")
    count = f"{len(result.audited)} locked packages"
    if result.vulnerabilities:
        click.echo(f"FOUND: {len(result.vulnerabilities)} vulnerabilities in {count}, {as_of}")
        return AuditOutcome.FOUND
    click.echo(f"CLEAN: {count}, {as_of}")
    return AuditOutcome.CLEAN


def _lock_text(path: Path, extra: tuple[str, ...]) -> str:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenError(f"{path}: {error}; give a lock file with --requirements") from error
    locked = locked_packages(text)
    for pin in extra:
        if not is_pin(pin) or canonicalize_name(pin.partition("==")[0]) in locked:
            raise BrokenError(f"--also is {pin!r}; write NAME==VERSION of a package not in {path}")
    return text + "".join(f"{pin} --hash=sha256:{'0' * 64}\n" for pin in extra)


@contextmanager
def _service(offline: Path | None) -> Iterator[Endpoint | None]:
    """Serve a dump, or yield None for OSV's own service."""
    if offline is None:
        yield None
        return
    with serving(load_database(offline)) as endpoint:
        yield endpoint


def _as_of(endpoint: Endpoint | None, *, allow_stale: bool) -> str:
    """Say what was asked and how old it is.

    Raises:
        BrokenError: it is too small or too old to say anything, or of a day that has not come.
    """
    now = dt.datetime.now(dt.UTC)
    if endpoint is None:
        return f"by OSV's service on {now:%Y-%m-%d %H:%MZ}"
    database = endpoint.database
    days = (now - database.date).days
    click.echo(f"database: {database.size} advisories, the newest of {database.date:%Y-%m-%d}")
    if database.size < RECORDS_MIN:
        raise BrokenError(
            f"the database has {database.size} advisories for Python's packages, and a whole one "
            f"has {RECORDS_MIN} and more; fetch OSV's all.zip of PyPI again"
        )
    if database.date > now + FUTURE_MAX:
        raise BrokenError(
            f"the database is of {database.date:%Y-%m-%d}, which has not come; its date says "
            "nothing of its age: fetch another, or set this machine's clock right"
        )
    if days <= FRESH_DAYS:
        return f"by a database of {database.date:%Y-%m-%d}"
    if not allow_stale:
        raise BrokenError(
            f"the database is of {database.date:%Y-%m-%d}, {days} days old; fetch a newer one, or "
            "say --allow-stale to learn what it still can tell"
        )
    return f"by a STALE database of {database.date:%Y-%m-%d}, {days} days old: not a plain pass"
