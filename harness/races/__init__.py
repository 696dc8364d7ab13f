"""Race detection for threaded Python: a happens-before detector, schedule search, linearizability.

It knows no project. Scenario files define what to explore (`scenario.py`); any `python -m` program
can run under the detector (`live.py`). This project's scenarios are in `tests/races/`.
"""
