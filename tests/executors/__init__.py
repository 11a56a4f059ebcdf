"""How the loop runs."""
