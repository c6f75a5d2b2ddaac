"""Other projects' checks, run on our code."""
