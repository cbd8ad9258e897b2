"""`python -m tinyserve_viz` is the command `tinyserve-viz`."""

import sys

from tinyserve_viz.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
