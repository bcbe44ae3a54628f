"""Administration: control socket, status, metrics, logs, notification, privileges."""
