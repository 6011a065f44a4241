"""The commands of `gallery/run.py`: their options, what they do, and what they print."""
