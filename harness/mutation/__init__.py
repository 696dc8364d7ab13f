"""Servers broken on purpose, each with the check that must notice: proof that the judge can fail.

A mutant is our own server with one text replaced; this folder is the only place outside `impl/`
that knows its source, and it knows it as text. A new mutant is one row of its area's table.
"""
