"""What a scheduler's own step() does, read off vectors that it is fed."""
