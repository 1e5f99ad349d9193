"""The commands of ``cdrd``, a module each: its arguments, and what it does with them."""
