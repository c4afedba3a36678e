"""The numbers of layers: formats of weights and activations, grids, rounding, ranges."""
