"`python -m lmcourse`: the same as the command `lmcourse`."
import sys
from lmcourse.cli import main

sys.exit(main())
