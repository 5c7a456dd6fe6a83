"""Bodies that an operator asked to keep, beside the ledger, and never in it."""
