"""The record: events, the chain that makes changes visible, the store and its review."""
