"""Other engines, measured in the same run on the same machine: set up, started, compared."""
