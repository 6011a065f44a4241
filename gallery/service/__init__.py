"""A gallery over HTTP: searches in the published version of a gallery, without torch; see `command.Serve`."""
