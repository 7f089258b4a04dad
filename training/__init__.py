"""How the embedded model math-mini is made. Not part of the installed packages."""
