"""How the ranks of a run stop together, notice each other's end, and leave nothing behind."""
