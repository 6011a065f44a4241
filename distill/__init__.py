"""LEARN: teacher, centers, gallery-compatible student."""
