"""From a selected program's connect() to the gate, and whose connection it is."""
