"""Export: one deployable graph, quantized, in three formats, and the bundle that carries them."""
