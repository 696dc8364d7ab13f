"""`make verify` in a Vagrant machine; `vagrant`, `ssh` and the machine are stand-ins."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest

from harness.project.verify import remote_command, verify
from harness.record.results import RunReport, save_report
from harness.record.verdict import BrokenError, Verdict
from harness.run.choice import Choice
from harness.vm import vagrant
from harness.vm.vagrant import provider_of, running_provider, ssh_config_of
from tests.harness.report.cases import report_of, result_of

RUNNING = """\
1764030000,default,metadata,provider,libvirt
1764030000,default,provider-name,libvirt
1764030000,default,state,running
1764030000,default,state-human-short,running
1764030000,default,state-human-long,The Libvirt domain is running.%!(VAGRANT_COMMA) you can
1764030000,,ui,info,Current machine states:\\n\\ndefault running (libvirt)
"""


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Machine:
    """A directory as the machine, and a record of Vagrant's commands."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = tmp_path / "there"
        self.commands = tmp_path / "commands"
        self.status = tmp_path / "status"
        self.status.write_text(RUNNING)
        programs = tmp_path / "programs"
        program(
            programs / "vagrant",
            f'echo "$*" >>{self.commands}\n'
            f'case $1 in status) cat {self.status} ;; ssh-config) echo "Host default" ;; esac',
        )
        # Runs the last word, like the machine's shell, as the same user. It refuses a connection if
        # `refusals` is not empty, and accepts -O exit.
        self.refusals = tmp_path / "refusals"
        self.refusals.write_text("")
        program(
            programs / "ssh",
            f"[ ! -s {self.refusals} ] || {{ : >{self.refusals}; echo denied >&2; exit 255; }}\n"
            'for last; do [ "$last" != -O ] || exit 0; done\nexec sh -c "$last"',
        )
        program(programs / "sudo", 'exec "$@"')
        program(self.there / ".ci/setup", "exit 0")
        machines = tmp_path / "dotfile/machines/default/libvirt"
        machines.mkdir(parents=True)
        (machines / "id").write_text("an-id")
        monkeypatch.setenv("VAGRANT_DOTFILE_PATH", str(tmp_path / "dotfile"))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(vagrant, "PROJECT_THERE", str(self.there))
        monkeypatch.chdir(tmp_path)

    def set_outcome(self, report: RunReport | None, exit_code: int) -> None:
        """Set the report, if any, and the exit code of the run in the machine."""
        script = 'echo "ran: $*"\nwhile [ "$1" != --out ]; do shift; done\nmkdir -p "$2"\n'
        if report is not None:
            save_report(report, self.there)
            script += f'cp {self.there}/results.json "$2"\n'
        program(self.there / ".venv/bin/python", f"{script}exit {exit_code}")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


CHOICE = Choice(
    targets=(), keyword="a|b", areas=("limits",), seed="4711", out=Path("here"),
    skips_allowed=("local:x*",),
)  # fmt: skip
GOOD = report_of(result_of("limits.memory", Verdict.PASS))
BAD = report_of(result_of("limits.memory", Verdict.FAIL))


def test_provider_of_a_stopped_machine_is_none() -> None:
    assert provider_of(RUNNING) == "libvirt"
    assert provider_of(RUNNING.replace("state,running", "state,shutoff")) is None
    assert provider_of("") is None


NOISE = (
    "[fog][WARNING] Unrecognized arguments: libvirt_ip_command",
    "==> vagrant: A new version of Vagrant is available: 9.9 (installed version: 2.4)!",
    "/usr/lib/ruby/x.rb:1: warning: already initialized constant A,B,state,shutoff",
    "",
)


def test_what_vagrant_and_its_plug_ins_print_beside_the_answer_is_ignored() -> None:
    noise = "\n".join(NOISE) + "\n"
    assert provider_of(noise + RUNNING + noise) == "libvirt"
    config = 'Host default\n  HostName 192.0.2.1\n  IdentityFile "/a b/key"\n'
    assert ssh_config_of(noise + config + noise) == config


def test_vagrant_is_not_started_without_a_machine(machine: Machine, tmp_path: Path) -> None:
    assert running_provider() == "libvirt"
    machine.commands.unlink()
    (tmp_path / "dotfile/machines/default/libvirt/id").unlink()
    assert running_provider() is None
    assert not machine.commands.exists()


@pytest.mark.parametrize(("report", "code"), [(GOOD, 0), (BAD, 1)])
def test_run_in_the_machine_decides_the_exit_code_and_its_report_is_copied(
    machine: Machine, report: RunReport, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.set_outcome(report, code)
    assert verify(CHOICE) == code
    assert json.loads(Path("here/results.json").read_text())["verdict"] == report.verdict
    output = capfd.readouterr().out
    assert "verifying in the Vagrant machine: a Vagrant machine of this checkout runs" in output
    assert "ran: -m harness verify --in here --out results/here --seed 4711" in output
    assert "rsync" in machine.commands.read_text().splitlines()


def test_advisory_database_is_sent_to_the_machine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all.zip").write_bytes(b"advisories")
    monkeypatch.setenv("JOBWORKER_ADVISORIES", str(tmp_path / "all.zip"))
    monkeypatch.setenv("JOBWORKER_ALLOW_STALE", "1")
    machine.set_outcome(GOOD, 0)
    python = machine.there / ".venv/bin/python"
    copy = 'cat "$JOBWORKER_ADVISORIES" >received; echo "$JOBWORKER_ALLOW_STALE" >>received'
    python.write_text(python.read_text().replace('echo "ran: $*"', copy))
    assert verify(CHOICE) == 0
    assert (machine.there / "received").read_text() == "advisories1\n"


def test_refused_connection_is_retried_with_a_warning(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.set_outcome(GOOD, 0)
    machine.refusals.write_text("one")
    assert verify(CHOICE) == 0
    assert "trying once more: denied" in caplog.text


def test_remote_command_has_the_choice() -> None:
    words = remote_command(CHOICE, "out")
    assert words[words.index("-k") + 1] == "a|b"
    assert words[words.index("--area") + 1] == "limits"
    assert words[words.index("--allow-skip") + 1] == "local:x*"


@pytest.mark.parametrize(
    ("report", "code", "text"),
    [
        (None, 0, "exited with 0 and left no report"),
        (None, 2, "exited with 2 and left no report"),
        (BAD, 0, "exited with 0, but its report has the exit code 1"),
        (GOOD, 255, "ssh to the Vagrant machine broke"),
    ],
)
def test_missing_or_contradicting_report_is_broken(
    machine: Machine, report: RunReport | None, code: int, text: str
) -> None:
    machine.set_outcome(report, code)
    with pytest.raises(BrokenError, match=text):
        verify(CHOICE)


def test_requested_vagrant_machine_must_run(machine: Machine) -> None:
    machine.status.write_text(RUNNING.replace("state,running", "state,shutoff"))
    with pytest.raises(BrokenError, match="start it: vagrant up"):
        verify(CHOICE, "vagrant")


def test_targets_with_a_vagrant_machine_are_rejected(machine: Machine) -> None:
    machine.set_outcome(GOOD, 0)
    with pytest.raises(BrokenError, match="leave it out"):
        verify(dataclasses.replace(CHOICE, targets=("vm",)))
