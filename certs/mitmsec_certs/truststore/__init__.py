"""Where programs look for roots: one module for each store."""
