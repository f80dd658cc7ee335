"""The text protocol: operators' commands and questions, as calls."""
