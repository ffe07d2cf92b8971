# SPDX-License-Identifier: GPL-2.0-only
"""Programs that system tests run inside a host."""
