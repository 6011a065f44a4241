"""Hash centers: constructions, assignment to classes, multi-label targets."""
