"""A program that is spoken to in lines: answered, timed out, killed, reaped."""

import sys
from pathlib import Path

from harness.host.piped_program import PipedProgram

ECHO = "import sys\nfor line in sys.stdin: print('got', line.strip(), flush=True)"


def test_lines_are_answered_until_the_program_is_killed() -> None:
    with PipedProgram([sys.executable, "-c", ECHO]) as program:
        program.say("one")
        assert program.first_line(30) == "got one\n"
        program.say("two")
        assert next(program.lines()) == "got two\n"
        program.kill()
        assert list(program.lines()) == []


def test_program_that_ended_gets_no_line_and_leaves_no_process() -> None:
    with PipedProgram([sys.executable, "-c", "pass"]) as program:
        assert program.first_line(30) == ""
        for _ in range(3):
            program.say("lost")
        pid = program.pid
    assert not Path(f"/proc/{pid}").exists()


def test_program_without_a_line_in_time_is_killed() -> None:
    with PipedProgram([sys.executable, "-c", "input()"]) as program:
        assert program.first_line(0.2) == ""
        assert list(program.lines()) == []
