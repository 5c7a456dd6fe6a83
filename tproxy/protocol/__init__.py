"""Bytes in, values out: no await, no clock, no settings, no I/O."""
