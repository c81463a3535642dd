"""``python -m hora`` is the ``hora`` command."""

import sys

from hora.cli import main

sys.exit(main())
