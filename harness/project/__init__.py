"""What is about this project, not any server: make verify, the table of docs/security.md."""
