"""Networks: backbone and hash head, pretrained weights, custom models."""
