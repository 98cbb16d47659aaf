"""Backups of PostgreSQL and MongoDB that are proven to restore."""

__version__ = "0.1.0"
