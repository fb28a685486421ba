"""The study of ``paper/protocol.md``: ``python -m paper.study``."""
