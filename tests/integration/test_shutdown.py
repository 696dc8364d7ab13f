"""A server that is asked to end does so, even when a call of it never comes back."""

import signal
import sys
import threading

import pytest

from tests.support.service import Certificates, client_for, launched_server
from worker_service.client import CallError

# A server whose `list` never comes back, and that is less patient than ours.
STUCK = """
import threading
from worker_service import server, service
from worker_service.cli import main
server._CALLS_GRACE_S = server._CALLS_END_MAX_S = 0.3
def never(self, request, context):
    print("stuck", flush=True)
    threading.Event().wait()
service.JobWorkerService.ListJobs = never
main()
"""


@pytest.mark.timeout(60)
def test_a_call_that_never_comes_back_does_not_keep_the_server(certificates: Certificates) -> None:
    with launched_server(certificates, program=(sys.executable, "-c", STUCK)) as (process, address):

        def lists() -> None:
            with client_for(address, certificates.admin) as client, pytest.raises(CallError):
                client.list_jobs()

        caller = threading.Thread(target=lists)
        caller.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1
        caller.join(20)
        assert not caller.is_alive()
