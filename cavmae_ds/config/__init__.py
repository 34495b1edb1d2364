"""Run configuration: the sections that every run has, loading, and which settings a resume may change."""
