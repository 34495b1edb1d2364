"""What a run will need and how fast it will go, predicted from its config before a GPU is asked for."""
