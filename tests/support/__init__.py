"""What the tests share: problems, networks, schedulers, and stand-ins for what is not here."""
