"""The benchmark: mitmsec beside its peers, on one origin, with the same clients, in one interleaved run.

Theory of operation. Figures from different hours of a shared machine cannot be compared, ratios from one run can.
So everything is started first and stays up, then each step of each round takes every variant in turn (the first one
changes from round to round), and only medians over the rounds and their ratios are compared with the thresholds::

      client namespace (this process)                                    origin namespace
     ┌───────────────────────────────────────────────────────────┐      ┌────────────────┐
     │  sh, one a variant ──► wrk · h2load · curl                 │      │                │
     │    gid 61001 ──nft redirect──► mitmdump  ──┐               │ veth │ nginx, TLS 1.3 │
     │    gid 61002 ──nft redirect──► squid     ──┼───────────────┼──────┤ 1 KB, 100 MB,  │
     │    gid 61003 ──nft redirect──► sslsplit  ──┤               │      │ 1 GB           │
     │    cgroup … ──local mode────► mitmdump   ──┤               │      │                │
     │    mitmsec run … -- sh ──────► mitmsec   ──┘               │      │                │
     └───────────────────────────────────────────────────────────┘      └────────────────┘

Every variant owns a cgroup for its proxy; the kernel's account of it gives CPU time to the microsecond, ended children
included, and its list of processes gives memory. Namespaces are anonymous and die with this process; temporary folders
and cgroups carry `mitmsec-bench-<pid>` and are removed at the end (what a killed run left, by the next one).
"""
