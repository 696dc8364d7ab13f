"""Mutants: copies of our server with one fault each, and the check that must fail for it.

The tables quote the server's source as text; no other folder of the harness refers to it. A new
mutant is one row in its area's table.
"""
