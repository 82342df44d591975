"""Every maximum of the format and the wire, with its unit and why.

Ceilings are fixed: no file and no message may exceed them, whatever the settings say, so readers check against them
before they allocate. Defaults are settings of the broker for new requests. (FORMAT.md §3.1, PROTOCOL.md)
"""

INT_MAX = 2**63 - 1
"""Greatest integer on the wire and on disk: fits every language's signed 64 bits."""

STREAM_BYTES_MAX = 255
"""Bytes of a stream name: its length is one byte in the batch."""

TYPE_BYTES_MAX = 256
"""Bytes of an event type."""

EVENT_FIXED_BYTES = 16
"""What each event costs beside type, metadata and payload: its id."""

EVENT_BYTES_MAX = 65_536
"""Default greatest event size."""

EVENT_BYTES_CEILING = 1 << 20
"""Fixed ceiling of an event's size."""

APPEND_EVENTS_MAX = 4_096
"""Default greatest count of events in one append."""

APPEND_EVENTS_CEILING = 65_536
"""Fixed ceiling of the count of events in one append."""

APPEND_BYTES_MAX = 8 << 20
"""Default greatest sum of event sizes in one append."""

APPEND_BYTES_CEILING = 12 << 20
"""Fixed ceiling of the sum of event sizes in one append."""

BATCH_BYTES_CEILING = APPEND_BYTES_CEILING + (4 << 20)
"""No batch is longer: the ceiling of an append, its packing (at most 20 bytes an event) and its names."""

GROUP_BYTES_MAX = 16 << 20
"""Default and ceiling of a group record, header included."""

MESSAGE_BYTES_MAX = 17 << 20
"""Greatest frame that the broker takes: the largest append with room for its names."""

MESSAGE_REQUESTS_MAX = 1_024
"""Most requests in one message."""

IN_FLIGHT_MAX = 4_096
"""Most requests of one client that wait for a reply."""

PAGE_BYTES_MAX = 1 << 20
"""A page's bytes, unless one append is larger."""

PUBLISH_BYTES_MAX = 65_536
"""Stored bytes in a published message; beyond it carries only its range."""

TYPES_FILTER_MAX = 64
"""Most event types in a read's filter."""

LIST_STREAMS_MAX = 1_000
"""Most streams in one reply to LIST_STREAMS."""

ID_WINDOW_EVENTS = 65_536
"""Default: the newest events whose ids the broker remembers."""

WAIT_FOR_MS_MAX = 30_000
"""Longest that a request may wait for a position."""

IPC_PATH_BYTES_MAX = 107
"""Longest path of an ipc socket (sun_path, less its NUL)."""

SESSION_RESULTS_MAX = 4_096
"""The newest results of a session that a repeat is answered with."""

SESSIONS_MAX = 1_000
"""Default: most sessions of a log. Each takes up to 64 KiB of the broker's memory, and 2 MB of a base."""

CURSORS_MAX = 65_536
"""Default: most cursors of a log."""
