"""Export: one deployable graph, quantized, in several formats, and the bundle that carries them."""
