"""Published defences, to compare with."""
