"""Local folders and object storage behind one interface, and the published tables."""
