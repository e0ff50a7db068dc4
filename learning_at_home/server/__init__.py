"""A server of experts: listens, computes, and tells the network what it serves."""
