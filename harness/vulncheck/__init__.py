"""A vulnerability check that cannot pass falsely: `pip-audit` on the lock file, with proof.

`pip-audit` can succeed without having queried any database: behind a package mirror that lacks the
JSON API it skips every package and passes. And a line that a parser skips is a package that is not
audited. Therefore (1) canaries, pins with known vulnerabilities in forms that could be overlooked,
must be flagged first, (2) any line of a requirements file that is not a pin is followed or refused,
(3) every pin, and every installed package, must be reported as audited at its version, (4) the
result names the database's date, and a stale database does not pass by default, (5) clean,
vulnerable and not audited have three exit codes.
"""
