"""Registries: pull and push by the OCI distribution specification (docs/registries.md).

- A pull: `pulling.py`, `platforms.py` (choosing among them), `downloads.py` (blobs on their way here).
- A push: `pushing.py`, `uploads.py` (sending a blob). Progress of several at once: `telling.py`.
- The API: `client.py`, `references.py` (names), `transport.py` (HTTP, retries, redirects), `pace.py` (who is too slow).
- Who one is there: `credentials.py` and `login.py` (where they are kept), `challenges.py` (what is asked for),
  `authorization.py` (what is shown).
"""
