# SPDX-License-Identifier: GPL-2.0-only
"""A report for people: as text, as a picture (SVG), as a page (HTML)."""
