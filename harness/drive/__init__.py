"""Drives a server: clients, concurrent readers, certificates, and a proxy with network faults."""
