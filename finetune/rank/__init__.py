"""Which checkpoint to start from: every backbone of the catalogue, scored on a sample of the user's own data."""
