"""Runs a command line as a program: errors, exit codes, standard streams and signals.

Exit codes: 0 and 1 are the command's own. 2: wrong usage, or BROKEN. 141: the reader of standard
output has closed it. 128 + N: signal N.
"""

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from harness.host.stop_signals import exit_on_stop_signals
from harness.program.streams import NoReaderError, install_streams
from harness.record.verdict import BrokenError, UnsupportedError
from harness.report.text import one_line, visible

EXIT_BROKEN: Final = 2
EXIT_USAGE: Final = 2
EXIT_NO_READER: Final = 128 + signal.SIGPIPE
_LINE_CHARACTERS_MAX: Final = 2000


def run_program(program: click.Group) -> NoReturn:
    """Run a command line and end this process."""
    install_streams()
    exit_on_stop_signals()
    try:
        _require_text(sys.argv[1:])
        sys.exit(program.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (try {context.command_path} --help)" if context else ""
        text = one_line(error.format_message(), _LINE_CHARACTERS_MAX)
        _end(f"Error: {text}{hint}", EXIT_USAGE)
    except click.Abort:  # the end of standard input
        sys.exit(EXIT_BROKEN)
    except NoReaderError:
        sys.exit(EXIT_NO_READER)
    except BrokenError as error:
        _end(f"BROKEN: {visible(str(error))}", EXIT_BROKEN)
    except UnsupportedError as error:  # its text is a name
        _end(f"BROKEN: missing: {visible(str(error))}", EXIT_BROKEN)
    except Exception:  # noqa: BLE001 - exit code 1 means that a server broke a promise
        _end(f"BROKEN: {visible(traceback.format_exc())}", EXIT_BROKEN)


def _require_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:  # Python keeps such bytes as surrogates
            raise click.UsageError(f"{argument!r} is invalid; it must be UTF-8") from None


def _end(text: str, exit_code: int) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(exit_code)
