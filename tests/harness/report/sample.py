"""A realistic run: two targets, all four verdicts, histories with many streamers.

To view it: `python -m tests.harness.report.sample DIRECTORY`.
"""

import random
import sys
import time
from pathlib import Path
from typing import Final

from harness.record.history import History, Outcome, Record, Stream, UsageCurve, save
from harness.record.results import CheckResult, RunReport
from harness.record.verdict import Finding, Verdict, merge
from harness.report import write_all
from harness.report.terminal import Terminal

TARGETS: Final = ("local", "guest")
NASTY: Final = "<script>alert('got')</script> \x1b[31mred\x00 \udc80\ufffe " + "A" * 5000

GUARANTEES: Final = {
    "jobs.exit-code": "A job's exit code is reported as the kernel returned it.",
    "jobs.group-dies": "Stopping a job ends all of its processes, whatever signals they ignore.",
    "jobs.unknown-id": "An unknown job id is NOT_FOUND in every call.",
    "streams.from-the-start": "A late streamer gets the output from its first byte.",
    "streams.binary": "Output is carried as it was written: all 256 byte values, no encoding.",
    "streams.many-readers": "Two hundred streamers of one job each get every byte, in order.",
    "streams.slow-reader": "A streamer that does not read slows no other streamer down.",
    "streams.cancel": "A cancelled streamer frees its resources on the server.",
    "limits.memory": "A job that exceeds its memory limit is killed, and no other.",
    "limits.cpu": "A job gets no more processor time than its quota.",
    "limits.io": "A job writes to the disk no faster than its limit.",
    "tls.old-versions": "TLS 1.2 and older are refused in the handshake.",
    "tls.foreign-ca": "A client certificate of another authority is refused in the handshake.",
    "tls.expired": "An expired client certificate is refused in the handshake.",
    "roles.user-stops": "StopJob by a user is PERMISSION_DENIED, and the job keeps running.",
    "roles.no-role": "Every call with a certificate without a role is PERMISSION_DENIED.",
    "load.starts": "A hundred starts a second are answered within 250 ms (p99).",
    "load.churn": "Ten minutes of short jobs leak no descriptor and no cgroup.",
}
ODD: Final = {
    ("local", "streams.binary"): [
        Finding(
            Verdict.FAIL,
            "every byte of reader-3 is what the job wrote",
            r"offset 128: b'\xef\xbf\xbd\xef\xbf\xbd'",
            r"offset 128: b'\x80\x81'",
        ),
        Finding(Verdict.FAIL, "the output has its length", "98816", "65536"),
        Finding(Verdict.PASS, "the stream ends", "OK", "OK"),
    ],
    ("guest", "limits.cpu"): [
        Finding(
            Verdict.FAIL,
            "the job's share of a processor over 10 s",
            "0.81",
            "0.5",
            "±10%: the kernel accounts in periods of 100 ms",
        )
    ],
    ("guest", "streams.many-readers"): [
        Finding(Verdict.FAIL, f"reader-{n} received everything", f"{n * 9973}", "5000000")
        for n in range(1, 31)
    ],
    ("guest", "load.starts"): [
        Finding(Verdict.BROKEN, "load floor: starts a second", "41.7", ">= 95"),
    ],
    ("local", "tls.expired"): [
        Finding(
            Verdict.BROKEN,
            "the check completes",
            "Traceback (most recent call last):\n"
            '  File "/work/main/harness/run/session.py", line 183, in _record_run\n'
            "    check.run(stage)\nConnectionRefusedError: [Errno 111] Connection refused",
        )
    ],
    ("local", "roles.no-role"): [Finding(Verdict.FAIL, "the answer is text", NASTY, "no markup")],
    ("local", "limits.memory"): [
        Finding(Verdict.SKIPPED, "the target lacks a cgroup v2 for each job")
    ],
    ("local", "limits.cpu"): [
        Finding(Verdict.SKIPPED, "the target lacks a cgroup v2 for each job")
    ],
    ("local", "limits.io"): [Finding(Verdict.SKIPPED, "the target lacks a cgroup v2 for each job")],
    ("guest", "load.churn"): [
        Finding(Verdict.SKIPPED, "the target lacks a flag for log retention"),
    ],
}
DRAWN: Final = {
    ("local", "streams.many-readers"),
    ("guest", "streams.many-readers"),
    ("local", "streams.slow-reader"),
    ("guest", "limits.memory"),
}


def write_sample(directory: Path) -> RunReport:
    """Write the run into a directory, and return it."""
    results = [_result(target, name, directory) for target in TARGETS for name in GUARANTEES]
    report = RunReport(
        about={
            "seed": "4711",
            "command": "python -m harness run --target local --target guest --seed 4711",
            "commit": "e5399c0d1f, with uncommitted changes",
            "kernel": "Linux 6.12.48+deb13-cloud-amd64 x86_64",
            "controllers": "cpuset cpu io memory hugetlb pids rdma misc",
        },
        started_at="2025-11-24T22:48:31Z",
        seconds=427.3,
        results=tuple(results),
        skips_allowed=("local:limits.*",),
    )
    write_all(report, directory)
    return report


def _result(target: str, name: str, directory: Path) -> CheckResult:
    random_source = random.Random(f"{target}:{name}")
    passed = [
        Finding(Verdict.PASS, f"reader-{n} received everything", "5000000", "5000000")
        for n in range(random_source.randint(1, 6))
    ]
    findings = tuple(ODD.get((target, name), passed))
    history = ""
    if (target, name) in DRAWN:
        history = f"history/{target}/{name}.jsonl"
        (directory / history).parent.mkdir(parents=True, exist_ok=True)
        save(_history(name, random_source), directory / history)
    return CheckResult(
        target=target,
        name=name,
        guarantee=GUARANTEES[name],
        verdict=merge(findings),
        findings=findings,
        seconds=random_source.uniform(0.1, 4) * (8 if name.startswith("load") else 1),
        cites=(
            f"{random_source.randint(1, 9)}.{random_source.randint(1, 9)}",
            f"R{random_source.randint(1, 40)}",
        ),
        rerun=f"python -m harness run --target {target} --seed 4711 --only {name}",
        history=history,
    )


def _history(name: str, random_source: random.Random) -> History:
    if name.startswith("limits"):
        samples = tuple((n / 10, min(64.0, 8 + n * 0.6) * 2**20) for n in range(120))
        return History([UsageCurve("Memory of the job", "bytes", 64 * 2**20, samples)])
    number = 200 if name.endswith("many-readers") else 4
    return History(
        [reader(index, random_source, slow=index == number - 2) for index in range(number)]
    )


def reader(index: int, random_source: random.Random, *, slow: bool = False) -> Record:
    """Return a streamer that joins a little late and, if slow, pauses for a while."""
    begin_s = random_source.uniform(0, 3)
    speed = random_source.uniform(0.9, 1.1)
    timeline = []
    received = 0.0
    for step in range(1, 151):
        at_s = begin_s + step / 10
        if slow and 5 < at_s < 9:
            continue
        wanted = 1_000_000 * at_s
        received += min(wanted - received, 400_000 * speed * (0.6 if slow else 1))
        timeline.append((round(at_s, 3), int(received)))
    return Stream(
        label=f"reader-{index}",
        job_id="0199f1a2-7c3e-7d11-a7a5-3b9f6d3c2b10",
        outcome=Outcome.OK,
        code="OK",
        detail="",
        received_bytes=timeline[-1][1],
        sha256="",
        started_s=begin_s,
        ended_s=timeline[-1][0] + 0.1,
        timeline=tuple(timeline),
    )


def main() -> None:
    """Write the sample into the given directory, and print progress as a run does."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    report = write_sample(directory)
    with Terminal(total=len(report.results)) as terminal:
        terminal.begin(report.about)
        terminal.note("local: the target lacks a cgroup v2 for each job")
        for result in report.results:
            terminal.started(result.target, result.name)
            time.sleep(0.05)  # so that the progress is visible
            terminal.finished(result)
        terminal.end(report, directory)


if __name__ == "__main__":
    main()
