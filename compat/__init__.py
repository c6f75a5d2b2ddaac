"""The classic `socketserver` API on the async core: see the CHANGELOG for what of it is here."""
