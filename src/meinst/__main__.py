"""``python -m meinst`` is the command ``meinst``."""

import sys

from meinst.cli.main import main

sys.exit(main())
