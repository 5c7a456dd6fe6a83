"""What a proxy adds, measured side by side with a direct run. How to run and read it: docs/bench.md.

    __main__ ─► plan, progress ─► suite ─► cell ─► subjects ─► process
                                   │        └───► native: load, upstream     processes of their own, in C or Python
                                   └─► report ◄─ goals

Two tables are meant to grow: `workloads.WORKLOADS` and `subjects.SUBJECTS`. Nothing here imports tproxy.
"""
