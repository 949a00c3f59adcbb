"""Find images that are likely mislabelled, duplicated or foreign to their class.

Needs the extra `clean`: pip install 'ltlearn[clean]'.
"""

from ltlearn.cleaning.find import find_issues
from ltlearn.cleaning.issues import KINDS, Finding, Issues

__all__ = ["KINDS", "Finding", "Issues", "find_issues"]
