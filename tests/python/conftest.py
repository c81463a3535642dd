"""Makes `import ranks` work in the tests, whose package is not installed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# A shell that starts the tests in the background leaves SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).resolve().parent))
