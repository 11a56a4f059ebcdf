"""What stands in the slots of an engine: states, conditions, and one network call for all."""
