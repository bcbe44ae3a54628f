"""Requests to a target, one at a time, without the driver."""
