"""The forms of a layer beside the dense one: sparse, with shared weights, and how forms are written."""
