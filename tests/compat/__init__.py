"""The tests of compat, the drop-in for socketserver."""
