"""What lasts: rows, and the ledger that keeps them."""
