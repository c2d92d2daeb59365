"""A registered model behind an address, and the page on which people look at models."""
