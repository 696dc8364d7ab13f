"""Where the command `worker-service` begins, and `python -m worker_service`."""

import os
import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] != ["serve"]:
        # To a client every failure comes as a status, which ends as one line; gRPC's own lines on
        # standard error would say it a second time. Read once, when grpc is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from worker_service.cli import run  # noqa: PLC0415 - after the environment is set

    run()


if __name__ == "__main__":
    main()
