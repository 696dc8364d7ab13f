"""Judges a folded load: first whether it was one at all, then what the server was to keep.

Pure: figures in, findings out. BROKEN stands for a load that was not reached, or that the generator
or the machine was the limit of: its figures say nothing of the server. FAIL stands for a broken
promise: wrong or missing bytes, streams that end badly, a limit that was not kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.verdict import Finding, Verdict
from loadtests.metrics import FIGURES
from loadtests.profiles import LIMITS
from loadtests.record import LEFT, SLOW, Load, StreamEnd

# A process with one interpreter lock that works so much of the time is the limit of what it reads,
# unless the server works as hard.
_SATURATED_CORES: Final = 0.95
_SERVER_IDLE_CORES: Final = 0.7
_EXAMPLES_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Strictness:
    """How a run is judged.

    Attributes:
        limits: added to each profile's, or in place of them.
        noisy: the machine is known to be busy with something else: a disturbed load is SKIPPED and
            not BROKEN. Its limits are not judged either way.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    noisy: bool = False


def judge(load: Load, figures: Mapping[str, float], strictness: Strictness) -> list[Finding]:
    """Return everything that is to be said of a load; never nothing."""
    trust = [*_floor(load, figures), *_noise(load, figures, strictness)]
    findings = [*trust, *_promises(load)]
    # Of a load that was none, or was disturbed, no figure is the server's.
    if all(each.verdict is Verdict.PASS for each in trust):
        findings += _limits(load, figures, strictness)
    return findings


def _finding(verdict: Verdict, promise: str, got: str, want: str, *, kept: bool) -> Finding:
    return Finding(Verdict.PASS if kept else verdict, promise, got, want)


def _floor(load: Load, figures: Mapping[str, float]) -> Iterator[Finding]:
    profile = load.profile
    if profile.pace is not None:
        late = profile.streamers if profile.replay else profile.late
        early = profile.streamers - late
        yield _finding(
            Verdict.BROKEN, "all streamers follow before the load begins",
            f"{load.joined}{_why_not_joined(load)}", str(early), kept=load.joined == early,
        )  # fmt: skip
        yield _finding(
            Verdict.BROKEN, "the writing job comes to its end",
            f"exit code {load.exit_code}", "exit code 0", kept=load.exit_code == 0,
        )  # fmt: skip
    if "asked_per_s" in figures:
        asked, achieved = figures["asked_per_s"], figures.get("achieved_per_s", 0.0)
        blocked = figures.get("writer_blocked_share", 0.0)
        yield _finding(
            Verdict.BROKEN, "the load is what was asked for",
            f"{achieved:.1f} messages/s (the writer waited {blocked:.0%} of it for the server)",
            f"{asked:.1f} messages/s, at least {profile.floor.rate_share:.0%} of it",
            kept=achieved >= asked * profile.floor.rate_share,
        )  # fmt: skip


def _why_not_joined(load: Load) -> str:
    codes = sorted({f"{end.code} {end.detail}".strip() for end in load.streams if _is_bad(end)})
    return f" ({'; '.join(codes[:_EXAMPLES_MAX])})" if codes else ""


def _noise(load: Load, figures: Mapping[str, float], strictness: Strictness) -> Iterator[Finding]:
    """Judge whether the generator or the machine was the limit."""
    floor = load.profile.floor
    verdict = Verdict.SKIPPED if strictness.noisy else Verdict.BROKEN
    bounds = [("others_cpu_share", floor.others_cores, "nobody else uses the machine")]
    if load.profile.is_timed or load.profile.storm is not None:
        bounds += [
            ("generator_lag_p99_ms", floor.generator_lag_p99_ms, "the readers wake in time"),
            ("writer_lag_p99_ms", floor.writer_lag_p99_ms, "the job writes in time"),
        ]
    for name, bound, promise in bounds:
        if name in figures:
            unit = FIGURES[name][0]
            yield _finding(
                verdict, promise, f"{figures[name]:.2f} {unit}", f"at most {bound:g} {unit}",
                kept=figures[name] <= bound,
            )  # fmt: skip
    ours, theirs = figures["generator_cpu_share"], figures.get("server_cpu_share", 0.0)
    yield _finding(
        verdict, "the generator is not the bottleneck",
        f"its busiest process used {ours:.2f} cores, the server {theirs:.2f}",
        f"less than {_SATURATED_CORES} cores",
        kept=ours < _SATURATED_CORES or theirs >= _SERVER_IDLE_CORES,
    )  # fmt: skip


def _is_bad(end: StreamEnd) -> bool:
    return end.code != "OK" and not (end.kind == SLOW and end.code == LEFT)


def _promises(load: Load) -> Iterator[Finding]:
    streams, size_bytes = load.streams, load.profile.size_bytes
    if streams:
        wrong = [f"streamer {end.number} {end.wrong}" for end in streams if end.wrong]
        yield _every(wrong, len(streams), "every byte is the one that the job wrote")
        bad = [f"streamer {end.number} {end.code}: {end.detail}" for end in streams if _is_bad(end)]
        yield _every(bad, len(streams), "streams end well, and with their job")
        whole = [end for end in streams if end.code == "OK"]
        short = [
            f"streamer {end.number} {end.checked_bytes} + {end.missed_bytes} dropped"
            for end in whole
            if end.checked_bytes + end.missed_bytes != size_bytes
        ]
        yield _every(short, len(whole), f"a stream that ends has all {size_bytes} bytes")
    failures = [
        f"{count} x {what}" for each in load.processes for what, count in each.failures.items()
    ]
    if load.profile.storm is not None:
        yield _every(failures, 0, "every start and every stop comes back")


def _every(bad: list[str], of: int, promise: str) -> Finding:
    got = "; ".join(bad[:_EXAMPLES_MAX]) + (f" and {len(bad) - _EXAMPLES_MAX} more" if
        len(bad) > _EXAMPLES_MAX else "")  # fmt: skip
    right = f"all {of}" if of else "all"
    return _finding(Verdict.FAIL, promise, got or right, right, kept=not bad)


def _limits(load: Load, figures: Mapping[str, float], strictness: Strictness) -> Iterator[Finding]:
    for name, bound in {**load.profile.limits, **strictness.limits}.items():
        if name not in figures:
            continue
        more_is_better = LIMITS[name]
        unit, about = FIGURES[name]
        value = figures[name]
        yield _finding(
            Verdict.FAIL, f"{name}: {about}", f"{value:.6g} {unit}".strip(),
            f"at {'least' if more_is_better else 'most'} {bound:.6g} {unit}".strip(),
            kept=value >= bound if more_is_better else value <= bound,
        )  # fmt: skip
