"""Captured flows as pcapng."""
