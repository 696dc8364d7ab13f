"""The entry point of the command `worker-service` and of `python -m worker_service`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    _occupy_standard_descriptors()
    # Without a traceback while modules are imported, which takes longest; commands replace it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(128 + signal.SIGINT))
    if sys.argv[1:2] != ["serve"]:
        # A client reports every failure as one line; gRPC's own lines on standard error would
        # repeat it. gRPC reads the variable once, when it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from worker_service.cli import run  # noqa: PLC0415 - after the environment is set

    run()


def _occupy_standard_descriptors() -> None:
    """Keep a closed descriptor 0, 1 or 2 from being reused: output would go into gRPC's sockets.

    Writing to what is opened here fails, as it does to a closed descriptor.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:  # noqa: PLR2004
        continue
    os.close(descriptor)


if __name__ == "__main__":
    main()
