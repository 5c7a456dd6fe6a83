"""Sockets: the outbound connection and its pool, the inbound connection that hypercorn serves with."""
