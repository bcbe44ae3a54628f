"""The status of a target, as ``aoe-target status --json`` prints it."""

from __future__ import annotations

from typing import Any

STATUS: dict[str, Any] = {
    "pid": 1,
    "version": "0.1.0",
    "uptime_seconds": 60.0,
    "exports": [
        {
            "address": "e0.0",
            "path": '/srv/"disk".img',
            "overlay": "",
            "size_bytes": 1 << 30,
            "read_only": False,
            "sync": True,
            "direct": False,
            "fault": "was truncated to 4,096 bytes",
            "flush_failed": True,
            "epoch": "5f1c0f0e7d2a9b34",
            "serial": "0.0:host",
            "config_string": "",
            "mask": [],
            "reserved_for": ["52:54:00:ae:00:02"],
            "interfaces": [
                {
                    "name": name,
                    "statistics": {
                        "requests": requests,
                        "reads": 4,
                        "writes": 3,
                        "read_bytes": 4096,
                        "written_bytes": 3072,
                        "flushes": 1,
                        "errors": {"DEVICE_FAULT": 2},
                        "dropped": {"short": 5, "masked": 6},
                        "last_request_age_seconds": age,
                    },
                }
                for name, requests, age in (("eth0", 17, 0.5), ("eth1", 0, None))
            ],
        }
    ],
    "interfaces": [
        {
            "name": "eth0",
            "mac": "52:54:00:ae:00:01",
            "mtu": 9000,
            "state": "up",
            "sectors_per_frame": 17,
            "statistics": {
                "received": 20,
                "sent": 18,
                "dropped": 7,
                "truncated": 1,
                "unsent": 2,
                "unmatched": 3,
                "repeats": 4,
            },
        }
    ],
}
