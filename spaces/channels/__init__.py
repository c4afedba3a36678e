"""The channels of a network: which are pruned together, in which order, and the network without some."""
