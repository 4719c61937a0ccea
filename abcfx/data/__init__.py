"""Reference data that is installed with the package, as JSON files."""
