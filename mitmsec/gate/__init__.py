"""Accept, whose, peek, decide; then splice, refuse or hand over."""
