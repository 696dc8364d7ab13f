"""Starts a child process, inside its cgroup from its first instruction, and reports its end.

Guarantees for the child: only descriptors 0 to 2 (input is /dev/null; output and errors are the
same pipe, so they keep their order), its own session and process group, no blocked or ignored
signals, exactly the environment that was given.

Texts are UTF-8 here, whatever the locale of the server: a client cannot know it. Variables that a
job inherits keep their bytes.

No Python code runs between fork and exec: `pidfd_spawn` of glibc >= 2.39 calls clone3 with
CLONE_INTO_CGROUP and returns a pidfd; without a cgroup, `posix_spawn` of glibc >= 2.34 is enough.
Both suspend only the calling thread. Sources: posix_spawn(3), clone(2).
"""

import ctypes
import errno
import os
import platform
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from worker_service.cgroup import Cgroup
from worker_service.errors import (
    CannotExecuteError,
    CommandNotFoundError,
    ConfigurationError,
    HostExhaustedError,
    InvalidRequestError,
    JobWorkerError,
    LimitsUnavailableError,
)
from worker_service.job_user import JobUser
from worker_service.linux import LIBC, LIBC_AT_ONCE, has_function, signal_process_group
from worker_service.oom_score import make_killable

# Sizes of glibc's opaque types (x86_64 and aarch64), rounded up.
_ATTRIBUTES_BYTES: Final = 512
_FILE_ACTIONS_BYTES: Final = 128
_SIGSET_BYTES: Final = 128

_POSIX_SPAWN_SETSIGDEF: Final = 0x04
_POSIX_SPAWN_SETSIGMASK: Final = 0x08
_POSIX_SPAWN_SETSID: Final = 0x80
_POSIX_SPAWN_SETCGROUP: Final = 0x100

# Every signal but SIGKILL and SIGSTOP, as a sigset_t: bit N-1 is signal N. Built by hand, because
# sigaddset rejects 32 and 33, which glibc reserves for its threads and would leave ignored.
_ALL_SIGNALS: Final = sum(
    1 << number - 1 for number in range(1, 65) if number not in {signal.SIGKILL, signal.SIGSTOP}
).to_bytes(_SIGSET_BYTES, "little")

DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a job inherits of the server's environment; nothing else, which may be secret.
INHERITED_VARIABLES: Final = (b"PATH", b"HOME", b"LANG", b"LC_ALL", b"LC_CTYPE", b"TZ")

# The kernel's limits (execve(2)): for one string, and for all of them. The second leaves room for
# the program's stack below the usual RLIMIT_STACK.
ARGUMENT_MAX_BYTES: Final = 131_071
ARGUMENTS_MAX_BYTES: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: a program, its arguments, its environment and its working directory."""

    name: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    working_directory: str | None = None

    def validate(self) -> None:
        """Reject a command that no kernel would run.

        Raises:
            InvalidRequestError: names the part and the reason.
        """
        if not self.name:
            raise InvalidRequestError("command_name is empty; name a program to run")
        strings = [("command_name", self.name)]
        strings += [(f"command_args[{i}]", text) for i, text in enumerate(self.arguments)]
        for key, value in (self.environment or {}).items():
            if not key or "=" in key:
                # The text after the '=' is a value, perhaps a secret: it must not be logged.
                raise InvalidRequestError(
                    f"environment key {key.partition('=')[0]!r} is empty or followed by '='; a key "
                    "is a name without '='"
                )
            strings.append((f"environment[{key!r}]", f"{key}={value}"))
        if self.working_directory is not None:
            if not self.working_directory.startswith("/"):
                raise InvalidRequestError(
                    f"working_directory is {self.working_directory!r}; it must be an absolute path"
                )
            strings.append(("working_directory", self.working_directory))
        _check_strings(strings)


def _check_strings(strings: Sequence[tuple[str, str]]) -> None:
    total_bytes = 0
    for label, text in strings:
        if "\0" in text:
            raise InvalidRequestError(f"{label} contains a NUL character; remove it")
        try:
            size_bytes = len(_encoded(text))
        except UnicodeEncodeError:
            raise InvalidRequestError(f"{label} contains a surrogate; use Unicode text") from None
        if size_bytes > ARGUMENT_MAX_BYTES:
            raise InvalidRequestError(
                f"{label} has {size_bytes} bytes; Linux allows at most {ARGUMENT_MAX_BYTES}"
            )
        total_bytes += size_bytes + 9  # its NUL and its pointer
    if total_bytes > ARGUMENTS_MAX_BYTES:
        raise InvalidRequestError(
            f"arguments and environment have {total_bytes} bytes in total, at most "
            f"{ARGUMENTS_MAX_BYTES} are allowed; pass the data in a file"
        )


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its exit code, or the signal that ended it (the other is 0)."""

    exit_code: int
    signal: int


class Child:
    """A started process that has not been reaped. Used by one thread at a time."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def signal_group(self, signal_number: signal.Signals) -> None:
        """Signal every process of the child's process group; does nothing if it is empty."""
        try:
            signal_process_group(self.pidfd, self.pid, signal_number)
        except ProcessLookupError:
            return

    def peek_exit(self) -> ExitStatus | None:
        """Return how the process ended, leaving it a zombie so that its pid is not reused.

        Raises:
            ChildProcessError: something else reaped it, or SIGCHLD is ignored (wait(2)).
        """
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(exit_code=result.si_status, signal=0)
        return ExitStatus(exit_code=0, signal=result.si_status)

    def reap(self) -> None:
        """Release the ended process's pid and close the pidfd. Last use of the child.

        Raises:
            ChildProcessError: as `peek_exit`; the pidfd is closed.
        """
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        finally:
            os.close(self.pidfd)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _readable(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _inherited_environment(user: JobUser | None) -> dict[bytes, bytes]:
    environment = {b"PATH": DEFAULT_PATH}
    environment |= {key: os.environb[key] for key in INHERITED_VARIABLES if key in os.environb}
    return environment | ({b"HOME": user.home} if user is not None else {})


def limits_supported() -> bool:
    """Return whether this C library can start a process inside a cgroup (glibc >= 2.39)."""
    return has_function("pidfd_spawn") and has_function("posix_spawnattr_setcgroup_np")


def spawn(
    command: Command, output_fd: int, cgroup: Cgroup | None, user: JobUser | None = None
) -> Child:
    """Start a program with both its outputs going to `output_fd`.

    As another user, a program that this user must not execute fails after the start: the job
    prints env's message and exits with 126 or 127.

    Raises:
        CommandNotFoundError: the program does not exist.
        CannotExecuteError: it exists but cannot be run, or its working directory cannot be used.
        InvalidRequestError: the arguments cannot be passed to any program.
        LimitsUnavailableError: a cgroup is requested and the C library is too old.
        HostExhaustedError: the host is out of processes, memory or descriptors.
    """
    command.validate()
    _check_working_directory(command.working_directory)
    requested = {_encoded(k): _encoded(v) for k, v in (command.environment or {}).items()}
    inherited = _inherited_environment(user)
    environment = inherited | requested
    program = _find_program(command.name, environment[b"PATH"], command.working_directory)
    words = [_encoded(word) for word in (command.name, *command.arguments)]
    if user is not None:
        program, words, environment = user.setpriv, user.wrap(words, requested), inherited
        with suppress(PermissionError):  # without it, the job cannot open /dev/stdout again
            os.fchown(output_fd, user.uid, user.gid)
    argv = _string_array(words)
    envp = _string_array([key + b"=" + value for key, value in environment.items()])
    with (
        _file_actions(command.working_directory, output_fd) as actions,
        _attributes(cgroup) as attributes,
    ):
        if cgroup is None:
            result, child = _posix_spawn(program, actions, attributes, argv, envp)
        else:
            result, child = _pidfd_spawn(program, actions, attributes, argv, envp)
    if child is None:
        raise _spawn_error(result, program, command, cgroup)
    make_killable(child.pid, cgroup)
    return child


_SpawnResult = tuple[int, Child | None]


def _posix_spawn(
    program: bytes,
    actions: ctypes.Array[ctypes.c_char],
    attributes: ctypes.Array[ctypes.c_char],
    argv: ctypes.Array[ctypes.c_char_p],
    envp: ctypes.Array[ctypes.c_char_p],
) -> _SpawnResult:
    pid = ctypes.c_int()
    result = LIBC.posix_spawn(ctypes.byref(pid), program, actions, attributes, argv, envp)
    if result != 0:
        return result, None
    # Only this code reaps children, so the pid is still the child's even if it has ended.
    try:
        return 0, Child(pid.value, os.pidfd_open(pid.value))
    except OSError as error:
        os.kill(pid.value, signal.SIGKILL)
        os.waitpid(pid.value, 0)
        raise HostExhaustedError(f"pidfd_open: {error.strerror}; the job was killed") from error


def _pidfd_spawn(
    program: bytes,
    actions: ctypes.Array[ctypes.c_char],
    attributes: ctypes.Array[ctypes.c_char],
    argv: ctypes.Array[ctypes.c_char_p],
    envp: ctypes.Array[ctypes.c_char_p],
) -> _SpawnResult:
    pidfd = ctypes.c_int(-1)
    result = LIBC.pidfd_spawn(ctypes.byref(pidfd), program, actions, attributes, argv, envp)
    if result != 0:
        return result, None
    child = Child(LIBC.pidfd_getpid(pidfd.value), pidfd.value)
    if child.pid < 0:  # it reads a file of /proc, and the pidfd may be the last descriptor
        text = os.strerror(ctypes.get_errno())
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        child.reap()
        raise HostExhaustedError(f"pidfd_getpid: {text}; the job was killed")
    return 0, child


def _string_array(strings: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(strings) + 1))(*strings, None)


def _must(result: int, function: str) -> None:
    """Check a function that returns an errno; these fail only for lack of memory."""
    if result != 0:
        raise HostExhaustedError(f"{function}: {os.strerror(result)}")


@contextmanager
def _file_actions(
    working_directory: str | None, output_fd: int
) -> Iterator[ctypes.Array[ctypes.c_char]]:
    actions = ctypes.create_string_buffer(_FILE_ACTIONS_BYTES)
    _must(LIBC_AT_ONCE.posix_spawn_file_actions_init(actions), "posix_spawn_file_actions_init")
    try:
        results = [
            LIBC_AT_ONCE.posix_spawn_file_actions_addopen(actions, 0, b"/dev/null", os.O_RDONLY, 0),
            LIBC_AT_ONCE.posix_spawn_file_actions_adddup2(actions, output_fd, 1),
            LIBC_AT_ONCE.posix_spawn_file_actions_adddup2(actions, output_fd, 2),
            LIBC_AT_ONCE.posix_spawn_file_actions_addclosefrom_np(actions, 3),
        ]
        if working_directory is not None:
            directory = _encoded(working_directory)
            results.append(LIBC_AT_ONCE.posix_spawn_file_actions_addchdir_np(actions, directory))
        for result in results:
            _must(result, "posix_spawn_file_actions")
        yield actions
    finally:
        LIBC_AT_ONCE.posix_spawn_file_actions_destroy(actions)


@contextmanager
def _attributes(cgroup: Cgroup | None) -> Iterator[ctypes.Array[ctypes.c_char]]:
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    _must(LIBC_AT_ONCE.posix_spawnattr_init(attributes), "posix_spawnattr_init")
    cgroup_fd = -1
    try:
        flags = _POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK | _POSIX_SPAWN_SETSID
        if cgroup is not None:
            cgroup_fd = cgroup.open_directory()
            _must(LIBC_AT_ONCE.posix_spawnattr_setcgroup_np(attributes, cgroup_fd), "setcgroup_np")
            flags |= _POSIX_SPAWN_SETCGROUP
        no_signals = bytes(_SIGSET_BYTES)
        _must(LIBC_AT_ONCE.posix_spawnattr_setsigdefault(attributes, _ALL_SIGNALS), "setsigdefault")
        _must(LIBC_AT_ONCE.posix_spawnattr_setsigmask(attributes, no_signals), "setsigmask")
        _must(LIBC_AT_ONCE.posix_spawnattr_setflags(attributes, ctypes.c_short(flags)), "setflags")
        yield attributes
    finally:
        LIBC_AT_ONCE.posix_spawnattr_destroy(attributes)
        if cgroup_fd >= 0:
            os.close(cgroup_fd)


def _check_working_directory(directory: str | None) -> None:
    """Check in advance: a failed spawn cannot be distinguished from a missing program."""
    if directory is None:
        return
    try:
        mode = os.stat(_encoded(directory)).st_mode
    except OSError as error:
        raise CannotExecuteError(
            f"working_directory {directory!r}: {error.strerror} (errno {error.errno}); "
            "it must be a directory on the server"
        ) from error
    if not stat.S_ISDIR(mode):
        raise CannotExecuteError(
            f"working_directory {directory!r}: {os.strerror(errno.ENOTDIR)} "
            f"(errno {errno.ENOTDIR}); it must be a directory on the server"
        )


def _find_program(command_name: str, path: bytes, working_directory: str | None) -> bytes:
    """Return the program to execute: a name with a slash unchanged, others found in PATH.

    The job looks where this looks: a relative name, and a relative directory of PATH, are below its
    working directory.

    Raises:
        CommandNotFoundError: not found.
        CannotExecuteError: found, but a directory or without permission to execute.
    """
    name, start = _encoded(command_name), _encoded(working_directory or "")
    missing = f"command {command_name!r}: {os.strerror(errno.ENOENT)} (errno {errno.ENOENT})"
    if b"/" in name:
        location = os.path.join(start, name)
        if not _is_executable(location):
            if not os.path.lexists(location):
                raise CommandNotFoundError(missing)
            _check_executable(name, location)
        return name
    candidates = [os.path.join(directory or b".", name) for directory in path.split(b":")]
    for candidate in candidates:
        if _is_executable(os.path.join(start, candidate)):
            return candidate
    for candidate in candidates:
        location = os.path.join(start, candidate)
        if os.path.isfile(location):
            _check_executable(location, location)
    raise CommandNotFoundError(f"{missing} in PATH={_readable(path)}")


def _is_executable(location: bytes) -> bool:
    return os.access(location, os.X_OK) and os.path.isfile(location)  # the first never raises


def _check_executable(name: bytes, location: bytes) -> None:
    if os.path.isdir(location) or not os.access(location, os.X_OK):
        number = errno.EISDIR if os.path.isdir(location) else errno.EACCES
        text = f"command {_readable(name)!r}: {os.strerror(number)} (errno {number})"
        raise CannotExecuteError(text)


def _spawn_error(
    number: int, program: bytes, command: Command, cgroup: Cgroup | None
) -> CannotExecuteError | HostExhaustedError | InvalidRequestError:
    """Return the error for a failed spawn; several causes share ENOENT."""
    text = f"command {_readable(program)!r}: {os.strerror(number)} (errno {number})"
    if number == errno.E2BIG:
        return InvalidRequestError(f"{text}; pass fewer arguments or variables")
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        cause = " inside the job's limits" if cgroup is not None else ""
        return HostExhaustedError(f"{text}; the host has no room for another process{cause}")
    if number == errno.ENOENT:
        if cgroup is not None and not cgroup.exists():
            return HostExhaustedError(f"{text}; the job's cgroup {cgroup.path} was removed")
        _check_working_directory(command.working_directory)
        return CannotExecuteError(f"{text}; the file exists, its interpreter or loader does not")
    note = {
        errno.ENOEXEC: "; not a program for this machine; a script needs '#!'",
        errno.EOPNOTSUPP: "; clone3, which limits need, is refused by seccomp",
    }.get(number, "")
    return CannotExecuteError(text + note)


def require_job_user(user: JobUser) -> None:
    """Check that this server can run programs as the user, and signal them.

    Raises:
        ConfigurationError: it cannot; the text says what it lacks.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with open(read_fd, "rb") as output:
        try:
            child = spawn(Command("true"), write_fd, None, user)
        except JobWorkerError as error:
            raise ConfigurationError(f"--job-user {user.name}: {error}") from error
        finally:
            os.close(write_fd)
        text = _readable(output.read()).strip()
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    ended = child.peek_exit()
    try:
        signal.pidfd_send_signal(child.pidfd, 0)  # of an ended process: only the permission
    except PermissionError:
        text = text or "its processes cannot be signalled"
    child.reap()
    if text or ended != ExitStatus(0, 0):
        raise ConfigurationError(
            f"--job-user {user.name}: {text or ended}; the server needs CAP_SETUID, CAP_SETGID and "
            "CAP_KILL: run it as root, or leave the setting out"
        )


def require_limits_supported() -> None:
    """Check that the C library can start a process inside its cgroup.

    Raises:
        LimitsUnavailableError: names the library found and the one required.
    """
    if not limits_supported():
        library, version = platform.libc_ver()
        raise LimitsUnavailableError(
            f"the C library is {library or 'unknown'} {version}; starting a process inside its "
            "cgroup needs glibc >= 2.39 (Debian 13, Ubuntu 24.04, Fedora 40)"
        )
