"""One solver step of a pipeline: our table or the scheduler itself, and what the host asks."""
