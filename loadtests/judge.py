"""Judges a folded load: first whether it was one at all, then what the server was to keep.

Pure: figures in, findings out. BROKEN stands for a load that was not reached, or that the generator
or the machine was the limit of: its figures say nothing of the server; and for a limit without the
figure that it limits. FAIL stands for a broken promise: wrong or missing bytes, streams that end
badly, a limit that was not kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.record.verdict import Finding, Verdict
from loadtests.metrics import FIGURES
from loadtests.profiles import LIMITS
from loadtests.record import LEFT, SLOW, Load, StreamEnd

# A process with one interpreter lock that works so much of the time is the limit of what it reads,
# unless the server works as hard.
_SATURATED_CORES: Final = 0.95
_SERVER_IDLE_CORES: Final = 0.7
_EXAMPLES_MAX: Final = 3
# asyncio waits in whole milliseconds (selectors.EpollSelector rounds up), so that a timer of the
# readers is so late on an idle machine too; bytes wake them without that.
_TIMER_MS: Final = 1.0
# Which latencies a lag is in; of those that a run tells it is held against the smallest.
_OWN_LAG: Final = (
    (
        "generator_lag_p99_ms", "the readers'",
        ("latency_p99_ms", "start_p99_ms", "stop_p99_ms", "first_byte_p99_ms"),
    ),
    ("writer_lag_p99_ms", "the job's", ("latency_p99_ms",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Strictness:
    """How a run is judged.

    Attributes:
        limits: added to each profile's, or in place of them.
        noisy: the machine is known to be busy with something else: a load that was disturbed, or
            that the job wrote too late, is SKIPPED and not BROKEN. Its limits are not judged
            either way.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    noisy: bool = False


def judge(load: Load, figures: Mapping[str, float], strictness: Strictness) -> list[Finding]:
    """Return everything that is to be said of a load; never nothing."""
    trust = [*_floor(load, figures, strictness), *_noise(load, figures, strictness)]
    findings = [*trust, *_promises(load)]
    # Of a load that was none, or was disturbed, no figure is the server's.
    if all(each.verdict is Verdict.PASS for each in trust):
        findings += _limits(load, figures, strictness)
    return findings


def _finding(verdict: Verdict, promise: str, got: str, want: str, *, kept: bool) -> Finding:
    return Finding(Verdict.PASS if kept else verdict, promise, got, want)


def _floor(load: Load, figures: Mapping[str, float], strictness: Strictness) -> Iterator[Finding]:
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
        by_others = blocked < (1 - achieved / asked) / 2  # the server has less than half of it
        too_late = Verdict.SKIPPED if strictness.noisy and by_others else Verdict.BROKEN
        yield _finding(
            too_late, "the load is what was asked for",
            f"{achieved:.1f} messages/s (the writer waited {blocked:.0%} of it for the server)",
            f"{asked:.1f} messages/s, at least {profile.floor.rate_share:.0%} of it",
            kept=achieved >= asked * profile.floor.rate_share,
        )  # fmt: skip
    if "starts_asked_per_s" in figures:
        asked, achieved = figures["starts_asked_per_s"], figures["starts_achieved_per_s"]
        yield _finding(
            Verdict.BROKEN, "the storm is what was asked for",
            f"{achieved:.1f} starts/s",
            f"{asked:.1f} starts/s, at least {profile.floor.rate_share:.0%} of it",
            kept=achieved >= asked * profile.floor.rate_share,
        )  # fmt: skip
    if "reconnections_least" in figures:
        least = int(figures["reconnections_least"])
        yield _finding(
            Verdict.BROKEN, "every streamer leaves and comes back",
            f"one came back {least} times", "at least once", kept=least >= 1,
        )  # fmt: skip


def _why_not_joined(load: Load) -> str:
    codes = sorted({f"{end.code} {end.detail}".strip() for end in load.streams if _is_bad(end)})
    return f" ({'; '.join(codes[:_EXAMPLES_MAX])})" if codes else ""


def _noise(load: Load, figures: Mapping[str, float], strictness: Strictness) -> Iterator[Finding]:
    """Judge whether the generator or the machine was the limit."""
    floor = load.profile.floor
    verdict = Verdict.SKIPPED if strictness.noisy else Verdict.BROKEN
    bounds = [
        ("others_cpu_share", floor.others_cores, "nobody else uses the machine"),
        ("machine_steal_share", floor.steal_cores, "the hypervisor gives the machine its time"),
    ]
    # What writes as fast as it can has the whole machine busy; of planned instants a busy one
    # makes waiting times of its own.
    if load.profile.is_planned:
        bounds += [
            ("machine_busy_share", floor.busy_share, "the machine has time to spare"),
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
    if load.profile.is_planned:
        yield from _separable(figures, floor.lag_share, verdict)
    ours, theirs = figures["generator_cpu_share"], figures.get("server_cpu_share", 0.0)
    yield _finding(
        verdict, "the generator is not the bottleneck",
        f"its busiest process used {ours:.2f} cores, the server {theirs:.2f}",
        f"less than {_SATURATED_CORES} cores",
        kept=ours < _SATURATED_CORES or theirs >= _SERVER_IDLE_CORES,
    )  # fmt: skip


def _separable(
    figures: Mapping[str, float], lag_share: float, verdict: Verdict
) -> Iterator[Finding]:
    """Judge whether a latency can be the server's: the own lag is in it, and nobody knows where."""
    for lag, whose, names in _OWN_LAG:
        told = {name: figures[name] for name in names if name in figures}
        if not told and "latency_max_ms" in figures:  # fewer than a hundred
            told["latency_max_ms"] = figures["latency_max_ms"]
        if not told or lag not in figures:
            continue
        name, least_ms = min(told.items(), key=lambda each: each[1])
        bound_ms = least_ms * lag_share + _TIMER_MS
        yield _finding(
            verdict, f"latency can be told from {whose} own lag",
            f"{lag} {figures[lag]:.2f} ms beside {name} {least_ms:.2f} ms"
            + (": not separable" if figures[lag] > bound_ms else ""),
            f"at most {lag_share:.0%} of {name} and {_TIMER_MS:g} ms, so {bound_ms:.2f} ms",
            kept=figures[lag] <= bound_ms,
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
            yield _unjudged(load, name, asked=name in strictness.limits)
            continue
        more_is_better = LIMITS[name]
        unit, about = FIGURES[name]
        value = figures[name]
        yield _finding(
            Verdict.FAIL, f"{name}: {about}", f"{value:.6g} {unit}".strip(),
            f"at {'least' if more_is_better else 'most'} {bound:.6g} {unit}".strip(),
            kept=value >= bound if more_is_better else value <= bound,
        )  # fmt: skip


# Why a figure that can be limited may be missing, by what its name begins with, and what to change.
_MISSING: Final = (
    ("latency_p99", "a p99 needs 100 planned messages: a profile with rate_per_s or burst"),
    ("latency_", "latency needs planned messages: a profile with rate_per_s or burst"),
    ("first_byte_", "it needs streamers that join late: a profile with late, or a replay"),
    ("start_", "it needs a storm in the profile"),
    ("stop_", "it needs a storm in the profile"),
    ("server_cpu_s_per_gb", "it needs more than 10 MB of output, and the server's process"),
    ("fairness", "it needs two streamers at least that have the same to receive"),
    ("rate_", "nothing was received"),
)  # fmt: skip
_OF_THE_PROCESS: Final = ("server_", "memory_")


def _unjudged(load: Load, name: str, *, asked: bool) -> Finding:
    """Say that a limit stands there and could not be judged, and what to change.

    A profile's own limit on a process that is elsewhere is SKIPPED, so that the loads can be used
    on servers of others; what was asked for by name is never left out without a word.
    """
    of_elsewhere = not load.local and name.startswith(_OF_THE_PROCESS)
    if of_elsewhere:
        why = "the server's process is not here: launch it with --launch, in place of --target"
    else:
        why = next((text for begin, text in _MISSING if name.startswith(begin)), "no figure")
    verdict = Verdict.SKIPPED if of_elsewhere and not asked else Verdict.BROKEN
    return Finding(
        verdict, f"{name}: {FIGURES[name][1]}", f"it could not be judged; {why}",
        "the figure, or no limit on it",
    )  # fmt: skip
