import sys
from pathlib import Path

_here = Path(__file__).parent
sys.path[:0] = [str(_here), str(_here.parent / "mining")]  # checks; brute
