"""Two instances of one architecture side by side: which dims grow between them, and by which factors."""
