"""Whatever bytes come, what has to be true of them: ``make fuzz``; a few of each in every test."""
