"""`cavmae doctor`: what would end a run, or slow it down, is found before it starts."""
