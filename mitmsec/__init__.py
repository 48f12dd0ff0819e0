"""mitmsec: pick applications; see, govern and prove what they send."""

__version__ = "0.1.0.dev0"
