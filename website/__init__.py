"""What builds the documentation's site beside MkDocs and its theme."""
