"""Drives a server: clients, readers, certificates, and a proxy that disturbs the network."""
