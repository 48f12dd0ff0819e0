"""Inspectors: one feature, one file, one class."""
