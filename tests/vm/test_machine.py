"""KVM is used only where it can run a processor."""

import os
from pathlib import Path

import pytest

from harness.vm import machine
from harness.vm.machine import KVM, TCG, acceleration, can_run_processor


def stand_in(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program called like QEMU first on the path."""
    program = directory / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("exit 85", KVM),  # the exit code that the probe's firmware causes
        ("exit 0", TCG),  # created a machine, and did not run it
        ("echo no KVM here >&2; exit 1", TCG),
        ("sleep 100", TCG),  # runs, and executes no instruction
    ],
)
def test_kvm_is_chosen_only_if_the_probe_ran(
    script: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, script, monkeypatch)
    monkeypatch.setattr(machine, "_PROBE_TIMEOUT_S", 3.0)
    (tmp_path / "cpuinfo").write_text("flags : fpu vmx\n")
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_KVM_DEVICE", tmp_path / "kvm")
    assert acceleration() == flags


@pytest.mark.parametrize(
    ("flags", "device"), [("fpu", "kvm"), ("fpu vmx", "none")], ids=["processor", "device"]
)
def test_host_without_virtualisation_is_not_probed(
    flags: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, f"touch {tmp_path / 'probed'}; exit 85", monkeypatch)
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_KVM_DEVICE", tmp_path / device)
    assert acceleration() == TCG
    assert not (tmp_path / "probed").exists()


@pytest.mark.vm
def test_probe_detects_a_running_processor_and_a_failing_qemu() -> None:
    assert can_run_processor(TCG)
    assert not can_run_processor((*TCG, "-no-such-flag"))


@pytest.mark.vm
def test_probe_detects_a_processor_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROBE_TIMEOUT_S", 2.0)
    assert not can_run_processor((*TCG, "-S"))
