"""Companion package of the course on long-tailed data. Import from its files: `from course_utils.data import ...`."""

__version__ = "0.1.0"
