"""Servers broken on purpose, each with the test that must notice: proof that the tests can fail.

A new mutant is one row, in `jobs` (below gRPC) or in `calls`: the file below `impl/worker_service`,
the text to replace (it must stand there once), what to put in its place, and the test.
"""

from typing import Final

from tests.mutants import calls, jobs
from tests.mutants.mutant import Mutant

MUTANTS: Final[tuple[Mutant, ...]] = (*jobs.MUTANTS, *calls.MUTANTS)
