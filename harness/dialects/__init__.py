"""Dialects: how a kind of server is spoken to, from a TOML file; jobworker.v1 is the first one."""
