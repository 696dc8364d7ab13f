"""The command `check` as a program: on our server, another one, a broken one, and none."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.__main__ import main as command
from harness.drive.identities import IdentityStore, make_identities
from harness.host.ports import free_port
from harness.mutation.check_mutants import LOCAL
from harness.mutation.mutation import broken_copy
from harness.project.security_table import DOCUMENT, NOT_RUN, OBSERVED_COLUMN, documented, table
from harness.record.history import History, UsageCurve
from harness.record.results import RunReport, load_report, save_report
from harness.record.verdict import Verdict
from harness.report.charts import draw
from harness.targets.local import MARKER

ROOT = Path(__file__).parents[2]
# Not the scanner: its program is installed from the network, which may be unreachable.
QUICK = (
    r"identity\.(?!scanner)|lifecycle\.(literal|ids|background|stop-tree)"
    r"|streams\.(after-end|resume|tails|order)"
)


@pytest.fixture(scope="module", autouse=True)
def _fonts() -> None:
    """Draw once before the leak guard counts: matplotlib keeps its font open for the process."""
    draw(History([UsageCurve("", "", None, ((0, 0),))]))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> IdentityStore:
    return make_identities(tmp_path_factory.mktemp("identities"))


def harness(*words: str, tree: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if tree is not None:
        environment["PYTHONPATH"] = f"{tree / 'impl'}:{tree / 'proto'}"
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def exit_code(*words: str) -> object:
    """Run a command that needs no server, in this process; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        command.main(words, standalone_mode=False)
    return ended.value.code


def verdicts(report: RunReport) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in report.results}


def test_our_server_passes_and_the_saved_run_can_be_judged_again(
    identities: IdentityStore, tmp_path: Path
) -> None:
    done = harness(
        "check", "-k", QUICK, "--identities", str(identities.directory), "--out", str(tmp_path),
        "--seed", "abc",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = load_report(tmp_path)
    assert set(verdicts(report).values()) == {Verdict.PASS}
    assert len(report.results) > 8
    assert report.about["seed"] == "abc"
    assert "\x1b" not in done.stdout
    assert "identity.roles" in (tmp_path / "report.html").read_text()
    assert 'classname="identity" name="roles"' in (tmp_path / "junit.xml").read_text()
    assert "offsets in StreamLogs" in report.about["target local has"]
    assert ("a disposable machine" in report.about["target local lacks"]) != MARKER.exists()
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["verdict"] == "PASS"
    assert (tmp_path / values["results"][0]["history"]).exists()
    assert exit_code("recheck", str(tmp_path)) == 0
    assert verdicts(load_report(tmp_path)) == verdicts(report)
    # The document's observations were made again.
    for line, written in zip(
        table(report.results), documented((ROOT / DOCUMENT).read_text()), strict=True
    ):
        observed = line.split("|")[OBSERVED_COLUMN].strip()
        assert observed in {NOT_RUN, written.split("|")[OBSERVED_COLUMN].strip()}, line


def test_broken_server_fails_and_the_report_repeats_it(
    identities: IdentityStore, tmp_path: Path
) -> None:
    mutant = next(each for each in LOCAL if each.name == "answers UNKNOWN for an unknown job")
    tree = broken_copy(mutant, ROOT, tmp_path / "tree")
    out = tmp_path / "out"
    done = harness(
        "check", "-k", r"lifecycle\.ids", "--out", str(out), "--seed", "7",
        "--identities", str(identities.directory), tree=tree,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout
    assert "UNKNOWN: no job has the id" in done.stdout
    assert "--seed 7" in done.stdout
    assert "-k '^lifecycle.ids$'" in done.stdout
    # Judged again without the server, the verdict is the same.
    assert exit_code("recheck", str(out)) == 1


@contextmanager
def original_server(identities: IdentityStore) -> Iterator[str]:
    """Run another implementation, with the original API's fields only."""
    files = identities.files("server")
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tests.support.original_server", "--listen", address,
            "--ca", str(files.ca), "--cert", str(files.cert), "--key", str(files.key),
        ],
        cwd=ROOT, env={**os.environ, "GRPC_VERBOSITY": "NONE"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def test_server_of_the_original_api_passes_fails_and_skips_as_expected(
    identities: IdentityStore, tmp_path: Path
) -> None:
    # Without the checks that wait for features that this server lacks.
    chosen = QUICK.replace("scanner", "scanner|expiry|openssl")
    chosen += r"|limits\.defaults|streams\.(many|retention)|lifecycle\.(exit-codes|shutdown)"
    with original_server(identities) as address:
        done = harness(
            "check", "--target", address, "-k", chosen, "--out", str(tmp_path),
            "--identities", str(identities.directory),
        )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    report = load_report(tmp_path)
    found = verdicts(report)
    passed = {name for name, verdict in found.items() if verdict is Verdict.PASS}
    assert passed >= {
        "identity.versions", "identity.strangers", "lifecycle.literal",
        "lifecycle.ids", "lifecycle.background", "lifecycle.exit-codes", "lifecycle.stop-tree",
        "streams.after-end", "streams.order", "streams.many",
    }  # fmt: skip
    skipped = {
        result.name: result.decisive[0].promise
        for result in report.results
        if result.verdict is Verdict.SKIPPED
    }
    assert "offsets in StreamLogs" in skipped["streams.resume"]
    assert "a cgroup v2 for each job" in skipped["limits.defaults"]
    assert "a launch command" in skipped["lifecycle.shutdown"]
    assert "log retention" in skipped["streams.retention"]
    # It accepts weak keys, empty roles and wrong purposes, and checks expiry at the handshake only.
    failed = {result.name: result for result in report.results if result.verdict is Verdict.FAIL}
    assert set(failed) == {
        "identity.certificates", "identity.certificate-rules", "identity.resumption",
        "identity.roles",
    }  # fmt: skip
    telling = failed["identity.certificate-rules"].decisive
    assert "RSA of 1024 bits" in " ".join(finding.promise for finding in telling)


def test_another_server_is_launched_by_its_command(
    identities: IdentityStore, tmp_path: Path
) -> None:
    command = (
        "{python} -m tests.support.original_server --listen {listen} --ca {ca} --cert {cert} "
        "--key {key}"
    )
    done = harness(
        "check", "--launch", command, "-k", r"lifecycle\.(literal|shutdown)", "--out",
        str(tmp_path), "--identities", str(identities.directory),
    )  # fmt: skip
    found = verdicts(load_report(tmp_path))
    assert found["lifecycle.literal"] is Verdict.PASS, done.stdout
    # It does not handle SIGTERM: it is killed, and its jobs live on.
    assert found["lifecycle.shutdown"] is Verdict.FAIL
    assert done.returncode == 1


def test_missing_server_is_told_once_and_no_check_is_run(
    identities: IdentityStore, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = harness(
        "check", "--target", "local", "--target", address, "-k", "literal", "--out", str(tmp_path),
        "--identities", str(identities.directory),
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    report = load_report(tmp_path)
    assert report.results == ()
    reason = f"the server at {address} cannot be judged: no connection: Connection refused"
    assert reason in report.setup_error
    assert (done.stdout + done.stderr).count(reason) == 1
    assert reason in (tmp_path / "report.html").read_text()
    assert reason in (tmp_path / "junit.xml").read_text()


def test_launched_server_that_ends_immediately_is_told_once(tmp_path: Path) -> None:
    done = harness("check", "--launch", "sh -c 'echo no way; exit 3'", "--out", str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert load_report(tmp_path).results == ()
    assert done.stdout.count("\nno way\n") == 1


def test_skip_that_is_not_allowed_is_broken(identities: IdentityStore, tmp_path: Path) -> None:
    words = ["check", "-k", r"literal|limits\.defaults", "--identities", str(identities.directory)]
    allowed = harness(*words, "--out", str(tmp_path), "--allow-skip", "local:limits.*")
    assert allowed.returncode in {0, 1}, allowed.stdout
    report = load_report(tmp_path)
    if verdicts(report)["limits.defaults"] is not Verdict.SKIPPED:
        return  # this host has cgroup v2, so the check is not skipped
    assert allowed.returncode == 0
    save_report(dataclasses.replace(report, skips_allowed=("local:streams.*",)), tmp_path)
    assert exit_code("recheck", str(tmp_path)) == 2


def test_list_prints_the_guarantees(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["check", "--list"], standalone_mode=False)
    assert "Every exit code, 0 to 255, is reported exactly." in capsys.readouterr().out


def test_selftest_runs_one_mutant_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    done = harness("selftest", "--where", "local", "-k", "UNKNOWN for an unknown job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 mutants caught" in done.stdout
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["[1/1]", "started"], ["[1/1]", "caught"]]
    command.main(["selftest", "--list"], standalone_mode=False)
    assert "catches a server that answers UNKNOWN for an unknown job" in capsys.readouterr().out
