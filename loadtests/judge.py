"""Judges a folded load: first whether the load was reached, then what the server promises.

Pure: figures in, findings out. BROKEN: the load was not reached, or the generator or the machine
was the bottleneck, so the figures say nothing about the server; or a limit lacks its figure. FAIL:
the server broke a promise: wrong or missing bytes, streams that end badly, an exceeded limit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.record.verdict import Finding, Verdict
from loadtests.figures import FIGURES, Figure, Figures, Limit, described
from loadtests.profiles import Floor
from loadtests.record import LEFT, SLOW, Load, StreamEnd

# A process with one interpreter lock that works for this share of the time is the bottleneck of its
# streams, unless the server works as hard.
_SATURATED_CORES: Final = 0.95
_SERVER_IDLE_CORES: Final = 0.7
_EXAMPLES_MAX: Final = 3
# asyncio waits in whole milliseconds (selectors.EpollSelector rounds up), so a reader's timer is
# this late on an idle machine too. Bytes wake a reader without that delay.
_TIMER_MS: Final = 1.0
_LATENCY_P99: Final = described(lambda figures: figures.latency.p99_ms)
_LATENCY_MAX: Final = described(lambda figures: figures.latency.max_ms)
_GENERATOR_LAG: Final = described(lambda figures: figures.generator.lag_p99_ms)
_WRITER_LAG: Final = described(lambda figures: figures.writer.lag_p99_ms)
# Each lag of our own, and the latencies that contain it. It is compared with the smallest of those
# that the load has.
_OWN_LAG: Final[tuple[tuple[Figure, str, tuple[Figure, ...]], ...]] = (
    (
        _GENERATOR_LAG, "the readers'",
        (
            _LATENCY_P99,
            described(lambda figures: figures.storm.start_p99_ms),
            described(lambda figures: figures.storm.stop_p99_ms),
            described(lambda figures: figures.streams.first_byte_p99_ms),
        ),
    ),
    (_WRITER_LAG, "the job's", (_LATENCY_P99,)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Strictness:
    """How a run is judged.

    Attributes:
        limits: by the figure's name; added to each profile's, or in place of them.
        noisy: other programs keep the machine busy: a load that was disturbed, or that the job
            wrote too late, is SKIPPED instead of BROKEN. Its limits are not judged either way.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    noisy: bool = False

    @property
    def disturbed_verdict(self) -> Verdict:
        """The verdict on a load that the machine disturbed."""
        return Verdict.SKIPPED if self.noisy else Verdict.BROKEN


def judge(load: Load, figures: Figures, strictness: Strictness) -> list[Finding]:
    """Return all findings about a load; never an empty list."""
    trust = [*_floor(load, figures, strictness), *_noise(load, figures, strictness)]
    findings = [*trust, *_promises(load)]
    # The figures of a load that was not reached, or was disturbed, are not the server's.
    if all(each.verdict is Verdict.PASS for each in trust):
        findings += _limits(load, figures, strictness)
    return findings


def _finding(verdict: Verdict, promise: str, got: str, want: str, *, kept: bool) -> Finding:
    return Finding(Verdict.PASS if kept else verdict, promise, got, want)


def _floor(load: Load, figures: Figures, strictness: Strictness) -> Iterator[Finding]:
    """Judge whether the load was reached."""
    profile = load.profile
    if profile.pace is not None:
        late = profile.streamers if profile.replay else profile.late
        early = profile.streamers - late
        yield _finding(
            Verdict.BROKEN, "all streamers follow before the load begins",
            f"{load.joined}{_why_not_joined(load)}", str(early), kept=load.joined == early,
        )  # fmt: skip
        yield _finding(
            Verdict.BROKEN, "the writing job exits by itself",
            f"exit code {load.exit_code}", "exit code 0", kept=load.exit_code == 0,
        )  # fmt: skip
    share = profile.floor.rate_share
    asked, achieved = figures.rates.asked_per_s, figures.rates.achieved_per_s or 0.0
    if asked is not None:
        blocked = figures.writer.blocked_share or 0.0
        by_others = blocked < (1 - achieved / asked) / 2  # the server caused less than half of it
        yield _finding(
            strictness.disturbed_verdict if by_others else Verdict.BROKEN,
            "the job writes at the requested rate",
            f"{achieved:.1f} messages/s (it waited {blocked:.0%} of the time for the server)",
            f"{asked:.1f} messages/s, at least {share:.0%} of it",
            kept=achieved >= asked * share,
        )  # fmt: skip
    asked, achieved = figures.storm.asked_per_s, figures.storm.achieved_per_s or 0.0
    if asked is not None:
        yield _finding(
            Verdict.BROKEN, "the storm starts jobs at the requested rate",
            f"{achieved:.1f} starts/s", f"{asked:.1f} starts/s, at least {share:.0%} of it",
            kept=achieved >= asked * share,
        )  # fmt: skip
    if (least := figures.streams.reconnections_least) is not None:
        yield _finding(
            Verdict.BROKEN, "every streamer disconnects and reconnects",
            f"one streamer reconnected {least} times", "at least once", kept=least >= 1,
        )  # fmt: skip


def _why_not_joined(load: Load) -> str:
    codes = sorted({f"{end.code} {end.detail}".strip() for end in load.streams if _is_bad(end)})
    return f" ({'; '.join(codes[:_EXAMPLES_MAX])})" if codes else ""


def _noise(load: Load, figures: Figures, strictness: Strictness) -> Iterator[Finding]:
    """Judge whether the generator or the machine was the bottleneck."""
    floor, verdict = load.profile.floor, strictness.disturbed_verdict
    for value, bound, unit, promise in _bounds(figures, floor, planned=load.profile.is_planned):
        if value is not None:
            yield _finding(
                verdict, promise, f"{value:.2f} {unit}".strip(),
                f"at most {bound:g} {unit}".strip(), kept=value <= bound,
            )  # fmt: skip
    if load.profile.is_planned:
        yield from _separable(figures, floor.lag_share, verdict)
    ours, theirs = figures.generator.cpu_share or 0.0, figures.server.cpu_share or 0.0
    yield _finding(
        verdict, "the generator is not the bottleneck",
        f"its busiest process used {ours:.2f} cores, the server {theirs:.2f}",
        f"less than {_SATURATED_CORES} cores",
        kept=ours < _SATURATED_CORES or theirs >= _SERVER_IDLE_CORES,
    )  # fmt: skip


def _bounds(
    figures: Figures, floor: Floor, *, planned: bool
) -> Iterator[tuple[float | None, float, str, str]]:
    """Yield values, their bounds, their units and the promises."""
    machine = figures.machine
    yield machine.others_share, floor.others_cores, "cores", "no other program uses the machine"
    yield (
        machine.steal_share, floor.steal_cores, "cores",
        "the hypervisor gives the machine its processor time",
    )  # fmt: skip
    # A load without planned instants is to keep the whole machine busy; with planned instants a
    # busy machine adds waiting times of its own.
    if planned:
        yield machine.busy_share, floor.busy_share, "", "the machine has time to spare"
        yield (
            figures.generator.lag_p99_ms, floor.generator_lag_p99_ms, "ms",
            "the readers wake in time",
        )  # fmt: skip
        yield (
            figures.writer.lag_p99_ms, floor.writer_lag_p99_ms, "ms", "the job writes in time"
        )  # fmt: skip


def _separable(figures: Figures, lag_share: float, verdict: Verdict) -> Iterator[Finding]:
    """Judge whether a latency can be the server's: it contains an unknown part of our own lag."""
    for lag, whose, latencies in _OWN_LAG:
        lag_ms = lag.of(figures)
        known = [(value, each) for each in latencies if (value := each.of(figures)) is not None]
        if not known and (max_ms := _LATENCY_MAX.of(figures)) is not None:  # fewer than a hundred
            known = [(max_ms, _LATENCY_MAX)]
        if not known or lag_ms is None:
            continue
        least_ms, least = min(known, key=lambda each: each[0])
        bound_ms = least_ms * lag_share + _TIMER_MS
        yield _finding(
            verdict, f"latency can be distinguished from {whose} own lag",
            f"{lag.name} {lag_ms:.2f} ms beside {least.name} {least_ms:.2f} ms"
            + (": not separable" if lag_ms > bound_ms else ""),
            f"at most {lag_share:.0%} of {least.name} and {_TIMER_MS:g} ms, so {bound_ms:.2f} ms",
            kept=lag_ms <= bound_ms,
        )  # fmt: skip


def _is_bad(end: StreamEnd) -> bool:
    return end.code != "OK" and not (end.kind == SLOW and end.code == LEFT)


def _promises(load: Load) -> Iterator[Finding]:
    streams, size_bytes = load.streams, load.profile.size_bytes
    if streams:
        wrong = [f"streamer {end.number} {end.wrong}" for end in streams if end.wrong]
        yield _every(wrong, len(streams), "every byte is the one that the job wrote")
        bad = [f"streamer {end.number} {end.code}: {end.detail}" for end in streams if _is_bad(end)]
        yield _every(bad, len(streams), "streams end with OK, after their job")
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
        yield _every(failures, 0, "every start and every stop succeeds")


def _every(bad: list[str], of: int, promise: str) -> Finding:
    got = "; ".join(bad[:_EXAMPLES_MAX])
    if len(bad) > _EXAMPLES_MAX:
        got += f" and {len(bad) - _EXAMPLES_MAX} more"
    right = f"all {of}" if of else "all"
    return _finding(Verdict.FAIL, promise, got or right, right, kept=not bad)


def _limits(load: Load, figures: Figures, strictness: Strictness) -> Iterator[Finding]:
    for name, bound in {**load.profile.limits, **strictness.limits}.items():
        figure = FIGURES[name]
        value = figure.of(figures)
        if value is None:
            yield _unjudged(load, figure, by_name=name in strictness.limits)
            continue
        yield _finding(
            Verdict.FAIL, f"{name}: {figure.about}", f"{value:.6g} {figure.unit}".strip(),
            f"{figure.limit} {bound:.6g} {figure.unit}".strip(),
            kept=value >= bound if figure.limit is Limit.AT_LEAST else value <= bound,
        )  # fmt: skip


def _unjudged(load: Load, figure: Figure, *, by_name: bool) -> Finding:
    """Report a limit that could not be judged, and what to change.

    A profile's own limit on a process that is not local is SKIPPED, so that the profiles also serve
    other people's servers. A limit that the user named is never left out silently.
    """
    is_remote = figure.of_process and not load.local
    why = figure.absent
    if is_remote:
        why = "the server's process is not local: use --launch instead of --target"
    verdict = Verdict.SKIPPED if is_remote and not by_name else Verdict.BROKEN
    return Finding(
        verdict, f"{figure.name}: {figure.about}", f"it could not be judged; {why}",
        "the figure, or no limit on it",
    )  # fmt: skip
