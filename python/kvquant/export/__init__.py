"""Results of a folder, exported."""
