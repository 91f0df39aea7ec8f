"""What there is to run, and how a role says to whoever started it why it ended. Light: every command loads it."""

ROLES = {
    "cdc": "cdc.service",
    "embedder": "embedder.service",
    "sink": "sink.service",
    "api": "api.service",
}

EXIT_CONFIG = 78
"""How a supervised role says that trying again changes nothing."""
EXIT_DAMAGED = 79
"""How it says that the log's file is damaged, or was taken away."""
