"""scripts/read_log.py, the reader that shares no code with broker and client.

It is no package's, so it is loaded by its path; at import, because several threads use it and the import lock
is what keeps one from meeting a module that another has half loaded.
"""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "read_log.py"

_spec = importlib.util.spec_from_file_location("read_log", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reader)
