"""``python -m ffalora`` is the command ``ffalora``."""

from .cli import main

main()
