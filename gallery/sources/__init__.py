"""What is to be in a gallery, and how its images are read: folders, manifests, object stores, http."""
