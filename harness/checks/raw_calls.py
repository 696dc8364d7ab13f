"""Calls as HTTP/2 messages, for the checks that speak below gRPC."""

from typing import Final

from harness.checks.common import UNKNOWN_ID
from jobworker.v1 import jobworker_pb2 as pb

QUERY_PATH: Final = "/jobworker.v1.JobWorker/QueryJob"
STREAM_PATH: Final = "/jobworker.v1.JobWorker/StreamLogs"
UNKNOWN_QUERY: Final = pb.QueryJobRequest(job_id=UNKNOWN_ID).SerializeToString()
GREET_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 20.0
