"""An honest vulnerability check: `pip-audit` on the lock file, and proof that it asked a database.

`pip-audit` can pass without having asked anybody: a mirror without its JSON interface makes it skip
every package and succeed. So (1) a known-bad pin must be flagged first, (2) every locked package
must come back audited, (3) the database's date is told, and an old one is no plain pass, (4) clean,
found and not audited are three exit codes.
"""
