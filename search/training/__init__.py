"""Training of networks under a policy."""
