"""Measures the checks with wire mutants.

First the controls: each quick check runs directly, and through a relay that changes nothing; those
that pass both are the ones that judge mutants. Meanwhile the relay notes which mutants would have
changed something of each check's traffic, so that a mutant is judged by these checks alone, the
fastest first, until one fails.
"""

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness.checks import ALL
from harness.checks.check import Check, Need, Scale
from harness.checks.quick import QUICK
from harness.record.results import CheckResult
from harness.record.verdict import Verdict
from harness.run.capabilities import Capabilities, probe_capabilities
from harness.run.check_runner import Options, Silent, run_checks
from harness.targets.fronted import direct_target
from harness.targets.target import RunningServer, Target
from harness.wire.equivalents import reason_for
from harness.wire.mutants import StatusMutant, WireMutant
from harness.wire.statuses import is_returned
from harness.wire.tap import MutantTap, SurveyTap
from harness.wire.target import open_target

SEED: Final = "wire"
PARALLEL: Final = 2


class Outcome(StrEnum):
    """What the checks made of a mutant.

    Attributes:
        CAUGHT: a check failed.
        MISSED: every check passed, or was inconclusive.
        UNUSED: it changes nothing that a check exchanges with the server: missed, too.
        LACKING: no check sees it, since the target lacks what the field is about.
        UNPROVOKED: the rpc may end with this status, and no check makes it: missed, too.
        UNRETURNED: the rpc never ends with this status.
        EQUIVALENT: it is in the table of equivalents.
        STALE: it is in that table, and a check failed.
        HARMLESS: the API allows it, and every check passed.
        FALSE_ALARM: the API allows it, and a check failed.
    """

    CAUGHT = "caught"
    MISSED = "MISSED"
    UNUSED = "UNUSED"
    LACKING = "lacking"
    UNPROVOKED = "UNPROVOKED"
    UNRETURNED = "unreturned"
    EQUIVALENT = "equivalent"
    STALE = "STALE"
    HARMLESS = "harmless"
    FALSE_ALARM = "FALSE ALARM"


BAD: Final = frozenset(
    {
        Outcome.MISSED,
        Outcome.UNUSED,
        Outcome.UNPROVOKED,
        Outcome.STALE,
        Outcome.FALSE_ALARM,
    }
)


@dataclass(frozen=True, slots=True)
class ControlledCheck:
    """A check that passes directly and through a relay.

    Attributes:
        check: the check.
        seconds: how long it took through the relay.
        mutants: names of the mutants that would change something of its traffic.
    """

    check: Check
    seconds: float
    mutants: frozenset[str]


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls' result.

    Attributes:
        capabilities: of the target.
        usable: the checks that judge mutants, the fastest first.
        unreachable: the checks that pass directly and not through a relay, each with its finding.
        unusable: the checks that do not pass directly, each with its finding.
    """

    capabilities: Capabilities
    usable: tuple[ControlledCheck, ...]
    unreachable: Mapping[str, str]
    unusable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WireProof:
    """The result of a mutant.

    Attributes:
        mutant: the mutant.
        outcome: what the checks made of it.
        detail: the check that failed with its finding, or what the checks said otherwise.
        seconds: duration.
    """

    mutant: WireMutant
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


# Globs of mutants that change nothing in a target without these.
NEEDS: Final[Mapping[str, Collection[Need]]] = {
    "wire.*.limits.*": (Need.LIMIT_FIELDS,),
    "wire.*.usage.*": (Need.CGROUPS,),
    "wire.*.oom_killed.*": (Need.CGROUPS,),
    "wire.*.status.RESOURCE_EXHAUSTED.*": (Need.LAUNCH, Need.UNARY_THREADS, Need.STREAM_CAP),
    "wire.*.status.UNAVAILABLE.*": (Need.LAUNCH, Need.HOST),
}
# Mutants that change nothing in a target with limits: there these fields are always present.
_ABSENT_WITHOUT_LIMITS: Final = frozenset(
    {"wire.QueryJobResponse.limits.invented", "wire.QueryJobResponse.usage.invented"}
)
# Quick checks that a relay disturbs even if it changes nothing, or that would disturb the others.
OUT_OF_REACH: Final = {
    "identity.rotation": "the certificate that a client sees is the relay's",
    "identity.strangers": "so are the handshakes, and the connections that it speaks HTTP/2 on",
    "lifecycle.concurrent-stops": "the mutants share the threads that it takes all of",
}
# Checks that are not quick, and the only ones that exchange some field.
SLOWER: Final = frozenset(
    {
        "lifecycle.busy",
        "lifecycle.delete",
        "lifecycle.health",
        "lifecycle.pages",
        "lifecycle.record",
        "lifecycle.shutdown",
        "lifecycle.times",
        "limits.reported",
        "limits.usage",
        "streams.held-output",
        "streams.live",
        "streams.retention",
    }
)


def judging_checks() -> list[Check]:
    """Return the checks that a mutant may be judged by."""
    names = {*QUICK, *SLOWER} - set(OUT_OF_REACH)
    return [check for check in ALL if check.name in names]


def control(
    target: Target,
    server: RunningServer,
    checks: Sequence[Check],
    mutants: Sequence[WireMutant],
) -> Controls:
    """Run checks directly, and through a relay that changes nothing.

    Raises:
        BrokenError: the server cannot be reached.
    """
    scale = Scale.SMALL if target.emulated else Scale.FULL
    capabilities = probe_capabilities(target, server, scale)
    direct = _run(direct_target(target, server), checks, capabilities)
    unusable = {each.name: _text(each) for each in direct if each.verdict is not Verdict.PASS}
    usable, unreachable = [], {}
    for check in checks:
        if check.name in unusable:
            continue
        survey = SurveyTap(mutants)
        with open_target(target, server, survey) as relayed:
            result = _run(relayed, [check], capabilities)[0]
        if result.verdict is Verdict.PASS:
            usable.append(ControlledCheck(check, result.seconds, frozenset(survey.effective)))
        else:
            unreachable[check.name] = _text(result)
    usable.sort(key=lambda each: each.seconds)
    return Controls(capabilities, tuple(usable), unreachable, unusable)


def prove_all(
    target: Target,
    server: RunningServer,
    mutants: Sequence[WireMutant],
    controls: Controls,
    parallel: int = PARALLEL,
) -> Iterator[WireProof]:
    """Judge mutants, some at a time; yield their results in order."""
    with ThreadPoolExecutor(parallel) as pool:
        yield from pool.map(lambda mutant: prove(target, server, mutant, controls), mutants)


def prove(
    target: Target, server: RunningServer, mutant: WireMutant, controls: Controls
) -> WireProof:
    """Judge a server whose traffic has one mutant, until a check fails."""
    started_s = time.monotonic()
    concerned = [each.check for each in controls.usable if mutant.name in each.mutants]
    reason = reason_for(mutant.name)
    if not concerned:
        return _unconcerned(mutant, reason, controls.capabilities)
    with open_target(target, server, MutantTap(mutant)) as relayed:
        failed, others = _judge(relayed, concerned, controls.capabilities)
    outcome = _outcome(mutant, caught=failed is not None, equivalent=bool(reason))
    lack = _lack(mutant.name, controls.capabilities)
    if outcome is Outcome.MISSED and lack:  # as of a request that is refused whatever it has
        outcome, detail = Outcome.LACKING, lack
    elif failed is not None:
        detail = f"{failed.name}: {_text(failed)}"
    elif reason:
        detail = reason
    else:
        detail = "; ".join(f"{each.name} {each.verdict}" for each in others)
    return WireProof(mutant, outcome, detail, time.monotonic() - started_s)


def _unconcerned(mutant: WireMutant, reason: str, capabilities: Capabilities) -> WireProof:
    """Return the result of a mutant that changes nothing of any check's traffic."""
    if reason:
        return WireProof(mutant, Outcome.EQUIVALENT, reason)
    lack = _lack(mutant.name, capabilities)
    if lack:
        return WireProof(mutant, Outcome.LACKING, lack)
    if not isinstance(mutant, StatusMutant):
        return WireProof(mutant, Outcome.UNUSED)
    returned = is_returned(mutant.rpc, mutant.status)
    return WireProof(mutant, Outcome.UNPROVOKED if returned else Outcome.UNRETURNED)


def _lack(name: str, capabilities: Capabilities) -> str:
    """Return what a target lacks that a mutant needs to change anything; empty: nothing."""
    if name in _ABSENT_WITHOUT_LIMITS and not capabilities[Need.LIMIT_FIELDS]:
        return "the target lacks a server without limits"
    needs = [need for glob, group in NEEDS.items() if fnmatchcase(name, glob) for need in group]
    return next((lack for need in needs if (lack := capabilities[need])), "")


def _outcome(mutant: WireMutant, *, caught: bool, equivalent: bool) -> Outcome:
    if mutant.harmless:
        return Outcome.FALSE_ALARM if caught else Outcome.HARMLESS
    if equivalent:
        return Outcome.STALE if caught else Outcome.EQUIVALENT
    return Outcome.CAUGHT if caught else Outcome.MISSED


def _judge(
    relayed: Target, checks: Sequence[Check], capabilities: Capabilities
) -> tuple[CheckResult | None, list[CheckResult]]:
    """Return the first result that is FAIL, and those before it."""
    others: list[CheckResult] = []
    for check in checks:
        result = _run(relayed, [check], capabilities)[0]
        if result.verdict is Verdict.FAIL:
            return result, others
        others.append(result)
    return None, others


def _run(target: Target, checks: Sequence[Check], capabilities: Capabilities) -> list[CheckResult]:
    with tempfile.TemporaryDirectory(prefix="jobworker-wire-") as directory:
        options = Options(SEED, Path(directory), parallel=1)
        return run_checks(target, checks, options, Silent(), capabilities)


def _text(result: CheckResult) -> str:
    finding = result.decisive[0].sentence() if result.decisive else "every promise kept"
    return f"{result.verdict}: {' '.join(finding.split())[:300]}"
