"""What a proxy adds, measured side by side with a direct run. How to run and read it: docs/bench.md.

    __main__ ─► suite ─► cell ─► subjects (direct, nginx, tproxy) ─► process
                  │        └───► load ─► talk, http     a process of its own
                  │              upstream ─► talk       a process of its own
                  └─► report

Two tables are meant to grow: `workloads.WORKLOADS` and `subjects.SUBJECTS`. Nothing here imports tproxy.
"""
