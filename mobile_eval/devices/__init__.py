"""Where shipped files run: one file a place."""
