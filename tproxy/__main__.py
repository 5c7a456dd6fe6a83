"""`python -m tproxy` is the `tproxy` command."""

from __future__ import annotations

from tproxy.cli import main

main()
