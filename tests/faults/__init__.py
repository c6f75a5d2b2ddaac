"""The tests of what goes wrong: rude clients, full tables, broken networks."""
