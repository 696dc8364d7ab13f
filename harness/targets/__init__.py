"""What is judged: a server that the harness launches, one in a guest, or any at HOST:PORT."""
