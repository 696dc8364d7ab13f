"""The entry point of the command `worker-service` and of `python -m worker_service`."""

import os
import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] != ["serve"]:
        # A client reports every failure as one line; gRPC's own lines on standard error would
        # repeat it. gRPC reads the variable once, when it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from worker_service.cli import run  # noqa: PLC0415 - after the environment is set

    run()


if __name__ == "__main__":
    main()
