"""Exchanges, once their rows are closed, to whoever is to have them: files, webhooks, collectors, object stores."""
