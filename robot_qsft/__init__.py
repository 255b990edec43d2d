"""Robot policies from mixed demonstrations, by Q-learning as weighted supervised fine-tuning."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `datasets/`, `policies/`, `sim/` and `hardware/` lie beside this folder; an
# installed package holds them inside it. Appending the root makes both look the same.
_ROOT = Path(__file__).parent.parent
if (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT))
