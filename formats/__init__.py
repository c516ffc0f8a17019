"""File formats that a frontend reads and a backend writes, so that neither imports the other."""
