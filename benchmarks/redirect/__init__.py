"""`make bench-redirect`: what leading a connection to the gate costs, to who is led and to who is not.

Theory of operation. What `benchmarks` does to be fair holds here too (one run, interleaved, medians, ratios); the
traffic is plain TCP that nobody reads, so that only the leading differs::

     client namespace                                                           origin namespace
    ┌──────────────────────────────────────────────────────────────────┐       ┌───────────────────┐
    │ sh ─────────────────────────────────────────────────── direct     │       │                   │
    │ sh ── called by address ──► our gate, without a hook    explicit   │ veth  │ nginx, plain HTTP │
    │ sh ── called by address ──► the gate's relay alone      bare relay ├───────┤ counting origin:  │
    │ mitmsec run -- sh ── hook ──► our gate             connect_hook    │       │ who arrives, led  │
    │ sh ── nft, local mode ──► mitmdump, bytes unread    mitmdump       │       │ or by himself     │
    │ sh ── beside each of them, not led anywhere         bystanders     │       │                   │
    └──────────────────────────────────────────────────────────────────┘       └───────────────────┘

What takes every first packet of its namespace (windivert) has, with its bystanders, a client namespace of its own.
`callers` runs in the shells; `counting` tells a led connection from one that came by itself by the time to live in its
first packet: the caller sets one that no relay sets. `figures`, `tables` and what reads the programs' words are pure.
"""
