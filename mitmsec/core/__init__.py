"""Values and decisions: no I/O, no clock, no log. What the product means is written here."""
