"""The make targets that no other test and no CI step runs."""

import os
import signal
import subprocess
from pathlib import Path

from tests.conftest import SLOWEST_FIRST

ROOT = Path(__file__).parents[1]


def test_files_that_begin_first_exist() -> None:
    assert [name for name in SLOWEST_FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_make_without_a_target_lists_the_targets() -> None:
    listed = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    for target in ("demo", "test", "lint", "serve", "certs"):
        assert f"make {target} " in listed.stdout


def test_make_serve_generates_certificates_and_ends_on_ctrl_c() -> None:
    process = subprocess.Popen(
        ["make", "serve", "SERVE=--no-limits --listen 127.0.0.1:0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("listening on 127.0.0.1:"):
                break
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert "valid until" in said
    assert "stopped" in rest
