"""The user that jobs run as, if it is not the server's: `--job-user`.

Between the spawn and the job's program, util-linux's setpriv takes the user's ids and groups, drops
all capabilities and sets no_new_privs. No thread of the server ever has the job's ids: a job could
signal or trace that thread, and with it the server (kill(2), ptrace(2)).

setpriv has the server's rights, so it never sees a variable that a client requested: LD_PRELOAD
would run a client's code with them. env sets those variables after the change. It also starts the
job's program, with no more rights than the user's: setpriv keeps capabilities until its exec.
"""

import grp
import pwd
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import fsencode, getgrouplist
from typing import Final, Self

from worker_service.errors import CannotExecuteError, ConfigurationError

_ID_MAX: Final = 2**32 - 2  # -1 is "no change" to the kernel (setresuid(2))


@dataclass(frozen=True, slots=True)
class JobUser:
    """A user's ids, home and groups, as they were when the server started.

    Attributes:
        name: as it was given, for errors.
        groups: the supplementary groups; of a user without an entry, only `gid`.
        setpriv, env: the paths of these programs.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: bytes = b"/"
    setpriv: bytes = b"setpriv"
    env: bytes = b"env"

    @classmethod
    def find(cls, text: str) -> Self:
        """Return the user of USER or USER:GROUP, each a name or a number.

        Raises:
            ConfigurationError: unknown, or a program that it needs is missing.
        """
        user_text, colon, group_text = text.partition(":")
        user = _entry(user_text)
        uid = user.pw_uid if user is not None else _number(user_text)
        gid = _group(group_text) if colon else user.pw_gid if user is not None else None
        if uid is None or gid is None:
            raise ConfigurationError(
                f"--job-user is {text!r}, and this host does not know "
                f"{'the user' if uid is None else 'the group'}; give USER or USER:GROUP, names or "
                "numbers; a number without an entry in the user database needs a group"
            )
        found = cls(text, uid, gid, (gid,))
        if user is not None:
            groups = tuple(getgrouplist(user.pw_name, gid))
            found = replace(found, groups=groups, home=fsencode(user.pw_dir))
        return replace(found, setpriv=_program("setpriv"), env=_program("env"))

    def wrap(self, words: Sequence[bytes], requested: Mapping[bytes, bytes]) -> list[bytes]:
        """Return the words of a command that runs `words` as this user.

        Args:
            words: the program and its arguments.
            requested: variables to set after the change of the user; the others are inherited.

        Raises:
            CannotExecuteError: env would take the program's name for a variable.
        """
        if b"=" in words[0]:
            raise CannotExecuteError(
                f"command {words[0].decode(errors='backslashreplace')!r}: with --job-user, a "
                "program's name cannot contain '='"
            )
        groups = ",".join(map(str, self.groups)).encode()
        return [
            self.setpriv, b"--reuid=%d" % self.uid, b"--regid=%d" % self.gid,
            b"--groups=" + groups, b"--inh-caps=-all", b"--ambient-caps=-all", b"--no-new-privs",
            b"--", self.env, b"--", *(key + b"=" + value for key, value in requested.items()),
            *words,
        ]  # fmt: skip


def _entry(text: str) -> pwd.struct_passwd | None:
    number = _number(text)
    try:
        return pwd.getpwnam(text) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):  # also: a NUL, or no text of the locale
        return None


def _group(text: str) -> int | None:
    number = _number(text)
    try:
        return grp.getgrnam(text).gr_gid if number is None else number
    except (KeyError, ValueError):
        return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,10}", text) and int(text) <= _ID_MAX else None


def _program(name: str) -> bytes:
    path = shutil.which(name)
    if path is None:
        raise ConfigurationError(
            f"--job-user needs the program {name}, which is not in PATH; install it (Debian: "
            "util-linux, coreutils)"
        )
    return fsencode(path)
