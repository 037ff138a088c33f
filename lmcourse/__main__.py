"""The command `lmcourse`, and `python -m lmcourse`: its first lines, so that a Ctrl-C is heard while everything else is
still being imported."""

import faulthandler
import sys


def main() -> int:  # the exit status
    "Import the command line, and run it."
    try:
        faulthandler.enable()  # a crash below Python says where it was
        from lmcourse.cli import main
    except KeyboardInterrupt:
        print('lmcourse: interrupted', file=sys.stderr)
        return 130
    return main()


if __name__ == '__main__':
    sys.exit(main())
