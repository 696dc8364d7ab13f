"""Servers broken on purpose, each with the test that must fail: proof that the tests can fail.

A new mutant is one row, in `logs`, `jobs` or `processes` (below gRPC), `identity`, `calls`,
`courier`, `rpcs`, `metrics` or `resumed`: the file below `impl/worker_service`, the text to replace
(it occurs there exactly once), what to put in its place, and the test.
"""

from typing import Final

from harness.mutation.mutation import Mutation
from tests.mutants import calls, courier, identity, jobs, logs, metrics, processes, resumed, rpcs

MUTANTS: Final[tuple[Mutation, ...]] = (
    *logs.MUTANTS,
    *jobs.MUTANTS,
    *processes.MUTANTS,
    *identity.MUTANTS,
    *calls.MUTANTS,
    *courier.MUTANTS,
    *metrics.MUTANTS,
    *rpcs.MUTANTS,
    *resumed.MUTANTS,
)
