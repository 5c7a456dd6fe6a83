"""Who looks on while exchanges run: the log, the metrics, the live view."""
