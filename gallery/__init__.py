"""SERVE: codes, code space, metrics, index, and encoding the gallery.  The ground floor: it imports no other folder."""
