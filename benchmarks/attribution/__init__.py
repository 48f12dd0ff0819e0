"""Attribution: flows whose owner is known, made on purpose, beside what mitmsec recorded about them.

Theory of operation. Whether the log names the right program can only be told by somebody who knows the right one, and
who didn't ask the product. So whoever calls `connect()` or `accept()` here writes down who it is, before it does, and
the origin writes down what reached it. Flows and events are joined by an address that no two flows share: flow 4711 is
the one whose far end is 198.18.18.103 (or 2001:db8:a77::1267). No clock and no port takes part in the join::

      client namespace                                                     origin namespace
     ┌────────────────────────────────────────────────────┐               ┌──────────────────────────┐
     │  mitmsec run … -- actors ──fork──► caller ─ connect ├── veth, all ──┤► origin, on every address │
     │                      │    exec, SCM_RIGHTS, threads │   of two      │    writes `sightings`     │
     │                      └──► servers ◄─ accept ────────┤   prefixes ───┤◄ callers from outside     │
     │                      each writes a line of `labels` │               └──────────────────────────┘
     └────────────────────────────────────────────────────┘
        plan (seed) ─► actors ─► labels ─┐
                       origin ─► sightings ├─► score ─► table, exit status
        mitmsec audit list --json ─► events ┘

`plan`, `labels` and `score` are pure. `actors` does inside the run what hostile and ordinary programs do; every kind of
it (a `Pattern`) says there what it is for. The plan follows from count and seed alone; pids and times are the kernel's.
"""
