"""What is judged: a server launched on this host or in a guest, or a running one at HOST:PORT."""
