"""Commands that ask a running server over its management API."""
