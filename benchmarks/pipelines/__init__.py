"""What an enabled pipeline costs the host."""
