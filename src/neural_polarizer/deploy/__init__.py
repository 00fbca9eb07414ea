"""A purified model leaves: folded into the network, or as a file for another runtime."""
