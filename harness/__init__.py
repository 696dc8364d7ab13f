"""Judges any job worker from outside: knows a server only through its API and the network."""
