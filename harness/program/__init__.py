"""What the command lines of the harness and of the load tests share.

`entry` runs one as a program, `arguments` has the types of its options, `streams` its standard
output, `stop_signals` its end.
"""
