"""Searches all orders of events for one in which a policy fails."""
