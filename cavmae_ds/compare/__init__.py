"""Runs side by side: losses over steps, clips or hours, last and best values, and what differs in the settings."""
