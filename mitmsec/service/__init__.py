"""One composition root a process: the only modules that know everybody."""
