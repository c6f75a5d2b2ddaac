"""The tests: one suite, three event loops."""
