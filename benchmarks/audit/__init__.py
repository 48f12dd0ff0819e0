"""How the audit log does at the size that a year of a busy machine has."""
